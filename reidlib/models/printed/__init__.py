"""All that is published about the models: tables, how their sources counted, cards and the page of the zoo."""

"""What notebooks and the command line need: runs, batch, search, monitor, views, parity, the table of the zoo."""

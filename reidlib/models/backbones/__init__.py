"""Trunks: modules that turn normalised images (B, 3, H, W) into a map (B, channels, h, w).

Each has an attribute `channels`. A trunk may give several maps, as a tuple; then `channels` is one too, and
`cam_layer` is the module whose output is a map. `imagenet` names the library's weights that one may begin with,
`added` the entries that these do not have. Only the modules in this folder import timm's or torchvision's models.
"""

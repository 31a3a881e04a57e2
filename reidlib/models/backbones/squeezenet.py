"""SqueezeNet with batch norms and bypasses, as torchreid had it in 2018. Today's is torchvision's, in `library.py`.

Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer: "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and
<0.5MB model size", arXiv 1602.07360, section 6: the variant with simple bypass. Here with a batch norm after every
convolution.
"""

import torch
from torch import Tensor, nn

from reidlib.models.layers import ConvNorm

# Squeezed channels, and expanded ones of each of the two convolutions; fire2 to fire9.
_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and by 3x3 convolutions side by side."""

    def __init__(self, cin: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = ConvNorm(cin, squeezed, bias=True)
        self.conv11 = ConvNorm(squeezed, expanded, bias=True)
        self.conv33 = ConvNorm(squeezed, expanded, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.conv11(x), self.conv33(x)], dim=1)


class BypassSqueezeNet(nn.Module):
    """The trunk: images (B, 3, H, W) to a map (B, 512, about H / 16, about W / 16); pools are not padded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, 96, 7, stride=2, padding=2, bias=True)
        self.pool = nn.MaxPool2d(3, stride=2)
        cin = 96
        for number, (squeezed, expanded) in enumerate(_FIRES, start=2):
            setattr(self, f"fire{number}", Fire(cin, squeezed, expanded))
            cin = 2 * expanded
        self.channels = cin

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x))
        for number in range(2, 10):
            y = getattr(self, f"fire{number}")(x)
            x = x + y if number % 2 else y  # bypasses go around the modules that keep the number of channels
            x = self.pool(x) if number in (4, 8) else x
        return x

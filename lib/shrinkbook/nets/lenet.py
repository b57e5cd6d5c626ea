"""LeNet-5 and the fully connected networks of Hinton et al. 2015, whole and halved, as Chen et al. 2019 use them."""

from collections.abc import Sequence

from torch import Tensor, nn


class LeNet(nn.Module):
    """Three convolutions with ReLU, 2x2 max pooling after the first two, two linear layers.

    Args:
        widths: outputs of the three convolutions and of the first linear layer.
        kernels: sides of the three kernels; the last one has to leave a map of one pixel.
        padding: of the first two convolutions.
        classes: number of classes.
        in_channels: channels of the input.
    """

    def __init__(
        self,
        widths: Sequence[int] = (6, 16, 120, 84),
        kernels: Sequence[int] = (5, 5, 5),
        padding: int = 0,
        classes: int = 10,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernels[0], padding=padding)
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernels[1], padding=padding)
        self.conv3 = nn.Conv2d(widths[1], widths[2], kernels[2])
        self.pool1, self.pool2 = nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU(inplace=True) for _ in range(4))
        self.fc1 = nn.Linear(widths[2], widths[3])
        self.fc2 = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.conv3(x)).flatten(1)
        return self.fc2(self.relu4(self.fc1(x)))


def lenet5(classes: int = 10) -> LeNet:
    """LeNet-5 for 32x32 grey images, 6-16-120-84-10, each map of conv2 reading all of conv1: 61,706 parameters."""
    return LeNet(classes=classes)


def lenet5_half(classes: int = 10) -> LeNet:
    """LeNet-5 at half width, 3-8-60-42-10: 15,738 parameters."""
    return LeNet((3, 8, 60, 42), classes=classes)


def hinton_net(hidden: int = 1200, inputs: int = 784, classes: int = 10) -> nn.Sequential:
    """Two hidden layers of ``hidden`` ReLU units: 1200 (2,395,210 parameters) or 800 (1,276,810) in the paper."""
    return nn.Sequential(
        nn.Flatten(1),
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, classes),
    )

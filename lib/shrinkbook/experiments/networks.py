"""Networks by the names that settings use: the papers' own, and small twins of them for the embedded digits."""

from collections.abc import Callable
from functools import partial

from torch import nn

from shrinkbook import nets


def digits_vgg() -> nets.VGG:
    """A narrow VGG for 8x8 digits: seven convolutions in three stages."""
    return nets.VGG(((16, 16), (16, 16), (32, 32, 32)), hidden=32, in_channels=1, side=8)


def digits_resnet() -> nets.ResNet:
    """ResNet-20 at half width for digits, option-A shortcuts as in the paper's CIFAR networks."""
    return nets.ResNet((3, 3, 3), (8, 16, 32), in_channels=1)


def digits_resnet8() -> nets.ResNet:
    """Three residual blocks for digits, half as wide as the CIFAR networks: small, and every method can take it."""
    return nets.ResNet((1, 1, 1), (8, 16, 32), in_channels=1)


def digits_preact() -> nets.PreactResNet:
    """Two pre-activation blocks for digits in the widths of CIFAR networks; a third stage would leave maps of 2x2."""
    return nets.PreactResNet((1, 1), (16, 32), in_channels=1)


def digits_projection() -> nets.ResNet:
    """ResNet-14 at half width for digits with projection shortcuts, as the paper's ResNet-34 has them."""
    return nets.ResNet((2, 2, 2), (8, 16, 32), in_channels=1, projection=True)


def digits_lenet(half: bool = False) -> nets.LeNet:
    """LeNet-5 in miniature for 8x8 digits, whole or at half width; its last convolution leaves one pixel."""
    widths = (8, 16, 32, 24) if half else (16, 32, 64, 48)
    return nets.LeNet(widths, kernels=(3, 3, 2), padding=1)


def digits_teacher() -> nets.VGG:
    """Two convolutions for digits; 32 features, as its student has."""
    return nets.VGG(((16,), (32,)), hidden=32, in_channels=1, side=8)


def digits_student() -> nets.VGG:
    """A quarter of its teacher's channels and as many features: similarities of images can be compared directly."""
    return nets.VGG(((4,), (8,)), hidden=32, in_channels=1, side=8)


NETS: dict[str, Callable[[], nn.Module]] = {
    "VGG-16": nets.vgg16,
    "ResNet-20": lambda: nets.resnet_cifar(20),
    "ResNet-56": lambda: nets.resnet_cifar(56),
    "ResNet-110": lambda: nets.resnet_cifar(110),
    "ResNet-34": nets.resnet34,
    "ResNet-18": nets.resnet18,
    "ResNet-50": nets.resnet50,
    "VGG-16 with one linear layer": nets.vgg16_one_linear,
    "DenseNet-12-40": nets.densenet_12_40,
    "DenseNet-BC-100-12": nets.densenet_bc_100_12,
    **{
        f"pre-activation ResNet-{depth}{suffix}": partial(
            nets.preact_resnet_bottleneck if depth == 164 else nets.preact_resnet_cifar, depth, classes
        )
        for depth in (20, 32, 44, 56, 110, 164)
        for classes, suffix in ((10, ""), (100, " for 100 classes"))
    },
    "LeNet-5": nets.lenet5,
    "LeNet-5-Half": nets.lenet5_half,
    "Hinton-784-1200-1200-10": nets.hinton_net,
    "Hinton-784-800-800-10": partial(nets.hinton_net, 800),
    "ResNet-34 for CIFAR": nets.resnet34_cifar,
    "ResNet-18 for CIFAR": nets.resnet18_cifar,
    "ResNet-34 for CIFAR-100": partial(nets.resnet34_cifar, 100),
    "ResNet-18 for CIFAR-100": partial(nets.resnet18_cifar, 100),
    "digits LeNet": digits_lenet,
    "digits LeNet, half": partial(digits_lenet, half=True),
    "digits VGG": digits_vgg,
    "digits pre-activation ResNet": digits_preact,
    "digits ResNet": digits_resnet,
    "digits ResNet-8": digits_resnet8,
    "digits ResNet with projections": digits_projection,
    "digits teacher": digits_teacher,
    "digits student": digits_student,
    "MNIST teacher": lambda: nets.VGG(((16,), (32,)), hidden=64, in_channels=1, side=28),
    "MNIST student": lambda: nets.VGG(((2,), (4,)), hidden=64, in_channels=1, side=28),
    "ResNet-14 with projections": lambda: nets.resnet_cifar(14, projection=True),
    **{
        f"ResNet-{d} with projections, 100 classes": partial(nets.resnet_cifar, d, 100, projection=True)
        for d in (14, 20, 56, 110)
    },
}

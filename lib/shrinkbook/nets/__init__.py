"""The architectures, in the papers' own shapes."""

from shrinkbook.nets.alexnet import alexnet
from shrinkbook.nets.coupling import Coupling
from shrinkbook.nets.googlenet import googlenet
from shrinkbook.nets.init import initialize
from shrinkbook.nets.resnet import ResNet, resnet34, resnet_cifar
from shrinkbook.nets.vgg import VGG, vgg16
from shrinkbook.nets.vgg_imagenet import vgg16_imagenet, vgg_s

__all__ = [
    "VGG",
    "Coupling",
    "ResNet",
    "alexnet",
    "googlenet",
    "initialize",
    "resnet34",
    "resnet_cifar",
    "vgg16",
    "vgg16_imagenet",
    "vgg_s",
]

"""The architectures, in the papers' own shapes."""

from shrinkbook.nets.coupling import Coupling
from shrinkbook.nets.init import initialize
from shrinkbook.nets.resnet import ResNet, resnet34, resnet_cifar
from shrinkbook.nets.vgg import VGG, vgg16

__all__ = ["VGG", "Coupling", "ResNet", "initialize", "resnet34", "resnet_cifar", "vgg16"]

"""The architectures, in the papers' own shapes."""

from shrinkbook.nets.alexnet import alexnet, alexnet_one_tower
from shrinkbook.nets.coupling import Coupling
from shrinkbook.nets.densenet import DenseNet, densenet_12_40, densenet_bc_100_12
from shrinkbook.nets.googlenet import googlenet
from shrinkbook.nets.init import initialize, skeleton
from shrinkbook.nets.lenet import LeNet, hinton_net, lenet5, lenet5_half
from shrinkbook.nets.mobilenet import (
    MobileNetV1,
    MobileNetV2,
    mobilenet_v1,
    mobilenet_v1_cifar,
    mobilenet_v2,
    mobilenet_v2_cifar,
    mobilenet_v2_supernet,
)
from shrinkbook.nets.preact_resnet import (
    PreactResNet,
    preact_resnet_bottleneck,
    preact_resnet_cifar,
    preact_resnet_imagenet,
)
from shrinkbook.nets.resnet import ResNet, resnet18, resnet18_cifar, resnet34, resnet34_cifar, resnet50, resnet_cifar
from shrinkbook.nets.vgg import VGG, vgg16, vgg16_one_linear
from shrinkbook.nets.vgg_imagenet import vgg16_imagenet, vgg_s

__all__ = [
    "VGG",
    "Coupling",
    "DenseNet",
    "LeNet",
    "MobileNetV1",
    "MobileNetV2",
    "PreactResNet",
    "ResNet",
    "alexnet",
    "alexnet_one_tower",
    "densenet_12_40",
    "densenet_bc_100_12",
    "googlenet",
    "hinton_net",
    "initialize",
    "lenet5",
    "lenet5_half",
    "mobilenet_v1",
    "mobilenet_v1_cifar",
    "mobilenet_v2",
    "mobilenet_v2_cifar",
    "mobilenet_v2_supernet",
    "preact_resnet_bottleneck",
    "preact_resnet_cifar",
    "preact_resnet_imagenet",
    "resnet18",
    "resnet18_cifar",
    "resnet34",
    "resnet34_cifar",
    "resnet50",
    "resnet_cifar",
    "skeleton",
    "vgg16",
    "vgg16_imagenet",
    "vgg16_one_linear",
    "vgg_s",
]

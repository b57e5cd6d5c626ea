"""AlexNet for ImageNet: as distributed with Caffe, in two groups, and in one tower as PyTorch's users know it."""

from collections import OrderedDict

from torch import nn

from shrinkbook.nets.vgg_imagenet import fully_connected


def alexnet(classes: int = 1000) -> nn.Sequential:
    """Krizhevsky et al. 2012: 724,406,816 multiply-accumulates and 60,954,656 weights at (3, 227, 227).

    Two groups in conv2, conv4 and conv5.
    Layers carry Caffe's names, ``conv1`` to ``conv5`` and ``fc6`` to ``fc8``; ``fc6`` reads a map of (256, 6, 6).
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 96, 11, stride=4),
            relu1=nn.ReLU(inplace=True),
            norm1=nn.LocalResponseNorm(5),
            pool1=nn.MaxPool2d(3, stride=2),
            conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
            relu2=nn.ReLU(inplace=True),
            norm2=nn.LocalResponseNorm(5),
            pool2=nn.MaxPool2d(3, stride=2),
            conv3=nn.Conv2d(256, 384, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, stride=2),
            **fully_connected(256 * 6 * 6, classes),
        )
    )


def alexnet_one_tower(classes: int = 1000, half: bool = False) -> nn.Sequential:
    """Krizhevsky 2014, without groups and normalisation, as torchvision builds it; input (3, 224, 224).

    With two classes 710,100,672 multiply-accumulates. ``half`` halves every layer but the last.
    """
    width = 1 if half else 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 32 * width, 11, stride=4, padding=2),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(3, stride=2),
            conv2=nn.Conv2d(32 * width, 96 * width, 5, padding=2),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(3, stride=2),
            conv3=nn.Conv2d(96 * width, 192 * width, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(192 * width, 128 * width, 3, padding=1),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(128 * width, 128 * width, 3, padding=1),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, stride=2),
            **fully_connected(128 * width * 6 * 6, classes, hidden=2048 * width),
        )
    )

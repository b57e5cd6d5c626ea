"""The two networks of Oxford's VGG group for 224x224 images that Kim et al. 2016 compress: VGG-S and VGG-16."""

from collections import OrderedDict

from torch import nn

from shrinkbook.nets.vgg import VGG16_STAGES


def vgg_s(classes: int = 1000) -> nn.Sequential:
    """CNN-S of Chatfield et al. 2014: 2,637,708,320 multiply-accumulates, 102,897,440 weights at (3, 224, 224).

    Pooling rounds up as in Caffe, which makes maps of 109, 37, 33, 17 and 6 pixels. ``fc6`` reads (512, 6, 6).
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 96, 7, stride=2),
            relu1=nn.ReLU(inplace=True),
            norm1=nn.LocalResponseNorm(5, alpha=5e-4, k=2.0),
            pool1=nn.MaxPool2d(3, stride=3, ceil_mode=True),
            conv2=nn.Conv2d(96, 256, 5),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2, stride=2, ceil_mode=True),
            conv3=nn.Conv2d(256, 512, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(512, 512, 3, padding=1),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(512, 512, 3, padding=1),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, stride=3, ceil_mode=True),
            **fully_connected(512 * 6 * 6, classes),
        )
    )


def vgg16_imagenet(classes: int = 1000) -> nn.Sequential:
    """Simonyan and Zisserman 2015, configuration D: 15,470,264,320 multiply-accumulates, 138,344,128 weights.

    Layers are ``conv1_1`` to ``conv5_3`` and ``fc6`` to ``fc8``, input (3, 224, 224); ``fc6`` reads (512, 7, 7).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, widths in enumerate(VGG16_STAGES, start=1):
        for index, width in enumerate(widths, start=1):
            layers[f"conv{stage}_{index}"] = nn.Conv2d(channels, width, 3, padding=1)
            layers[f"relu{stage}_{index}"] = nn.ReLU(inplace=True)
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    return nn.Sequential(layers | fully_connected(512 * 7 * 7, classes))


def fully_connected(features: int, classes: int, hidden: int = 4096) -> "OrderedDict[str, nn.Module]":
    """Three linear layers behind a flatten, ``fc6`` to ``fc8``, as AlexNet and the VGG networks share them."""
    return OrderedDict(
        flatten=nn.Flatten(1),
        fc6=nn.Linear(features, hidden),
        relu6=nn.ReLU(inplace=True),
        drop6=nn.Dropout(0.5),
        fc7=nn.Linear(hidden, hidden),
        relu7=nn.ReLU(inplace=True),
        drop7=nn.Dropout(0.5),
        fc8=nn.Linear(hidden, classes),
    )

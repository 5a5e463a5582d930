"""torchvision networks as if they were trained, and their files."""

import torch
from torch import nn
from torchvision import models


def random_network(name, seed=0, **options):
    """With batch norm statistics that differ from those of a new network."""
    torch.manual_seed(seed)
    network = models.get_model(name, weights=None, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def saved(network, path):
    torch.save(network.state_dict(), path)
    return str(path)

"""Gradient inversion once more, client by client with plain autograd: what the batched program must equal."""

import torch
import torch.nn.functional as F
from tiny import INFO, image_set
from torch import nn
from torch.func import functional_call

from leaklearn.attacks.inversion.features import recover
from leaklearn.federated import FedAvg, Payload, draw_batches, gather, make_clients, respond
from leaklearn.models import build


def exchange(protocol, *, clients=3, info=INFO, payload=None, seed=0, dtype=torch.float64, **options):
    """Payload, updates, and the truth: images (K, N, C, H, W) in [0, 1] and labels (K, N)."""
    if payload is None:
        payload = Payload.of(build(options.pop("name", "convnet"), info, **{"width": 4, **options})).to(dtype=dtype)
    participants = make_clients(image_set(12 * clients, seed, info), clients, seed=seed)
    updates = respond(participants, payload, protocol, seed)
    images, labels = gather(participants, draw_batches(participants, protocol, seed).flat)
    return payload, updates, images.to(dtype) / 255, labels


def update_of(payload, protocol, images, labels):
    """One client's update from (N, C, H, W) in [0, 1] and (N,) labels, by an ordinary training loop."""
    model = payload.model
    mode = model.training
    model.train(protocol.batch_norm == "train")
    weights = start = {name: value.clone().requires_grad_() for name, value in payload.parameters.items()}
    buffers = {name: value.clone() for name, value in payload.buffers.items()}
    steps = zip(images.split(protocol.batch_size), labels.split(protocol.batch_size), strict=True)
    for x, y in steps:
        loss = F.cross_entropy(functional_call(model, {**weights, **buffers}, (x,)), y)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        if isinstance(protocol, FedAvg):
            weights = {n: w - protocol.lr * g for (n, w), g in zip(weights.items(), gradients, strict=True)}
    model.train(mode)
    if not isinstance(protocol, FedAvg):
        return dict(zip(weights, gradients, strict=True))
    return {name: weights[name] - start[name] for name in weights}


def vector(state):
    return torch.cat([value.flatten() for value in state.values()])


def cosine(g, t):
    return 1 - F.cosine_similarity(vector(g), vector(t), dim=0, eps=1e-30)


OBJECTIVES = {
    "cosine": cosine,
    "euclidean": lambda g, t: F.mse_loss(vector(g), vector(t), reduction="sum"),
    "layer_norms": lambda g, t: torch.stack([torch.linalg.vector_norm(g[n] - t[n]) for n in t]).sum(),
    "layer_cosine": lambda g, t: torch.stack([cosine({n: g[n]}, {n: t[n]}) for n in t]).mean(),
    "layer_euclidean": lambda g, t: torch.stack([((g[n] - t[n]) ** 2).sum() / (t[n] ** 2).sum() for n in t]).mean(),
}


def differences(pixels):
    """To the right and the lower neighbour; 0 beyond the edge."""
    right, below = torch.zeros_like(pixels[..., :1]), torch.zeros_like(pixels[..., :1, :])
    return torch.diff(pixels, dim=-1, append=right), torch.diff(pixels, dim=-2, append=below)


def isotropic(pixels, small=1e-8):
    return torch.hypot(torch.hypot(*differences(pixels)), torch.full_like(pixels, small**0.5)).mean()


def opponents(pixels):
    r, g, b = (pixels[:, i : i + 1] for i in range(3))
    return torch.cat([r, g, b, r - g, r - b, g - b], 1)


def batch_norm(pixels, labels, payload, update, protocol):
    """Inputs of each batch norm at the weights sent, in the first local step's mode, over the images of that step."""
    model, total, factor = payload.model, 0, 10
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    seen = {}
    hooks = [m.register_forward_pre_hook(lambda m, x, n=n: seen.update({n: x[0]})) for n, m in norms.items()]
    model.train(protocol.batch_norm == "train")
    state = {**payload.parameters, **{name: value.clone() for name, value in payload.buffers.items()}}
    functional_call(model, state, (images_of(payload, pixels)[: protocol.batch_size],))
    for name in norms:
        var, mean = torch.var_mean(seen[name], (0, 2, 3), correction=0)
        distance = torch.linalg.vector_norm(mean - payload.buffers[f"{name}.running_mean"])
        distance = distance + torch.linalg.vector_norm(var - payload.buffers[f"{name}.running_var"])
        total, factor = total + factor * distance, 1
    for hook in hooks:
        hook.remove()
    return total


def features(pixels, labels, payload, update, protocol):
    """Mean features of each label against those recovered (`recover` has a test of its own)."""
    target = recover(payload, {n: v.unsqueeze(0) for n, v in update.items()}, labels.unsqueeze(0)).values[0]
    payload.model.train(protocol.batch_norm == "train")
    seen = []
    hook = payload.model.head.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    state = {**payload.parameters, **{name: value.clone() for name, value in payload.buffers.items()}}
    functional_call(payload.model, state, (images_of(payload, pixels),))
    hook.remove()
    means = torch.stack([seen[0][labels == label].mean(0) for label in labels])
    return ((means - target) ** 2).sum() / (target**2).sum()


PRIORS = {
    "tv": lambda p, *_: sum(d.abs().mean() for d in differences(p)),
    "tv_isotropic": lambda p, *_: isotropic(p),
    "tv_squared": lambda p, *_: sum((d**2).mean() for d in differences(p)),
    "tv_opponents": lambda p, *_: isotropic(opponents(p)),
    "tv_smooth": lambda p, *_: isotropic(opponents(p), 0.03**2),
    "l2": lambda p, *_: (p**2).mean() / 2,
    "batch_norm": batch_norm,
    "features": features,
}


def images_of(payload, pixels):
    return pixels * payload.buffers["normalise.std"] + payload.buffers["normalise.mean"]


def pixels_of(payload, images):
    return (images - payload.buffers["normalise.mean"]) / payload.buffers["normalise.std"]

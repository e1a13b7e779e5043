"""A frozen backbone cut over the processes that train together, by FSDP2."""

from __future__ import annotations

import torch

from bayestune.backbone.backbone import Backbone
from bayestune.processes import current


def shard(backbone: Backbone) -> None:
    """Leave each process its share of every frozen layer; a pass puts one layer together at a time.

    Embeddings and the last norm are cut too, and together from one pass to the next; what is
    trained stays whole on every process. From then on all processes have to run equally many
    passes, as `bayestune.fit` sees to; one alone keeps everything.

    Args:
        backbone: changed in place.
    """
    if current().alone:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(backbone.device.type, (torch.distributed.get_world_size(),))
    trained = {p for p in backbone.parameters() if p.requires_grad}
    for part in (*backbone.layers, backbone.transformer):  # the last holds what is around layers
        fully_shard(part, mesh=mesh, ignored_params=trained)
    backbone.sharded = True

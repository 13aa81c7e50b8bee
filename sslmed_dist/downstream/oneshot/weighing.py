"""How much the support's copied mask counts on one query."""

from dataclasses import replace

import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot import tidy
from sslmed_dist.downstream.oneshot.copying import Weighing, at_heights, need
from sslmed_dist.downstream.oneshot.reliability import cycle
from sslmed_dist.downstream.oneshot.segmenter import Found, Segmenter, Shown
from sslmed_dist.downstream.oneshot.tidy import Centre, Spacing


@torch.inference_mode()
def weighed(
    segmenter: Segmenter, shown: Shown, found: Found, maps: Tensor, spacing: Spacing, centre: Centre | None
) -> Found:
    """What was ``found`` on a query with the ``maps`` (S, D, h, w), with the copied mask of the support beside it by
    its weight (``copying.Weighing``). ``centre`` is that of the query's body, on which the support's is laid. The same
    object where the organ was learnt without copying; the same margins where the weight is 0. The range of slices is
    the one that was estimated, or given."""
    if shown.copy is None:
        return found
    assert shown.place is not None and centre is not None, "copying needs the centres of both bodies"
    own = shown.copy.own
    if not need(own) > 0:
        return replace(found, weighing=Weighing(own))
    height, width = found.margins.shape[2:]
    first, last = found.estimate.first, found.estimate.last
    laid = tidy.moved(shown.copy.distances.float(), shown.place, centre, spacing, (height, width))
    copied = torch.zeros(found.margins.shape[1:], dtype=torch.bool, device=laid.device)
    copied[first : last + 1] = at_heights(laid, last - first + 1) < 0
    masks = found.prediction(), copied
    back = [cycle(segmenter, shown, mask, maps, (first, last)) if mask.any() else 0.0 for mask in masks]
    weighing = Weighing(own, *back)
    return replace(found, laid=laid if weighing.weight > 0 else None, weighing=weighing)

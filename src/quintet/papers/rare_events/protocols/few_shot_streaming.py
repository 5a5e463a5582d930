"""Few-shot accuracy while the examples stream by, as the authors test: every image is answered, then remembered."""

import numpy as np
import torch
from torch import Tensor

from quintet.papers.rare_events.protocols.few_shot import FewShot, plan_episodes


class FewShotStreaming(FewShot):
    """k-shot = accuracy on a class' (k+1)-th showing, in rounds that show every class once in random order.

    An episode of w ways has w x (max shots + 1) images and starts with an empty memory. This is not strict k-shot:
    classes that came earlier in the same round were shown k+1 times by then (see `few_shot_strict`).
    """

    name = "few_shot_streaming"

    def drawings(self) -> int:
        return max(self.shots) + 1

    def measure(self, module, keys_cdx: Tensor, way: int) -> dict[int, np.ndarray]:
        length = way * (max(self.shots) + 1)
        plan = plan_episodes(self.episodes, *keys_cdx.shape[:2], way, length, self.seed)
        predicted = []
        for stores, keys_etd, labels_et in self.batches(module, keys_cdx, plan, stored=length):
            answers = []
            for t in range(length):
                answers.append(stores.answer(keys_etd[:, t : t + 1])[:, 0])
                stores.write(keys_etd[:, t], labels_et[:, t])
            predicted.append(torch.stack(answers, 1).cpu())
        right_erw = (torch.cat(predicted).numpy() == plan.labels).reshape(self.episodes, -1, way)
        return {shot: right_erw[:, shot].mean(1) for shot in self.shots}

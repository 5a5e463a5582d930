"""Streaming few-shot accuracy, as in the authors' code: every image is classified, then written to the memory."""

import numpy as np
import torch
from torch import Tensor

from quintet.papers.rare_events.protocols.few_shot import FewShot, plan_episodes


class FewShotStreaming(FewShot):
    """k-shot is the accuracy on the (k+1)-th image of a class, in rounds that show every class once in random order.

    An episode of w ways has w x (max shots + 1) images and starts with an empty memory. This is not strict k-shot, for
    which see few_shot_strict: classes that came earlier in the same round have been shown k+1 times already.
    """

    name = "few_shot_streaming"

    def drawings(self) -> int:
        return max(self.shots) + 1

    def measure(self, module, keys_cdx: Tensor, way: int) -> dict[int, np.ndarray]:
        length = way * (max(self.shots) + 1)
        plan = plan_episodes(self.episodes, len(keys_cdx), keys_cdx.shape[1], way, length, self.seed)
        predicted = []
        for stores, keys_etd, labels_et in self.batches(module, keys_cdx, plan, stored=length):
            answers = []
            for t in range(length):
                answers.append(stores.answer(keys_etd[:, t : t + 1])[:, 0])
                stores.write(keys_etd[:, t], labels_et[:, t])
            predicted.append(torch.stack(answers, 1).cpu())
        right_erw = (torch.cat(predicted).numpy() == plan.labels).reshape(self.episodes, -1, way)
        return {shot: right_erw[:, shot].mean(1) for shot in self.shots}

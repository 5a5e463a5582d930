"""Hugging Face's generate for benchmarks/show_and_tell/captioning.py, run by a Python that has transformers.

One image is one embedding in front of bos, as in Show and Tell. The weights are random: only the time counts, so that
eos is held back to an average caption's length and then forced.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
import torch

import quintet  # noqa: F401  torchvision beside a CPU build of torch: see quintet.common.compat


def main() -> None:
    import transformers

    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=asked["vocabulary"], n_embd=asked["width"], n_layer=1, n_head=8,
                                     n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    embeds = torch.randn(asked["batch"], 1, asked["width"])
    start = model.transformer.wte(torch.full((asked["batch"], 1), 1))
    prompt = torch.cat([embeds, start], 1)
    mask = torch.ones(prompt.shape[:2], dtype=torch.int64)
    rows = []
    for beam in asked["beams"]:
        times = []
        for _ in range(4):
            began = time.perf_counter()
            with torch.no_grad():
                model.generate(inputs_embeds=prompt, attention_mask=mask, num_beams=beam, do_sample=False,
                               max_new_tokens=12, min_new_tokens=11, forced_eos_token_id=2)  # fmt: skip
            times.append(time.perf_counter() - began)
        note = f"transformers {transformers.__version__}, GPT-2 of one layer, 12 words, random weights"
        value = asked["batch"] / sorted(times[1:])[1]
        rows.append({"metric": f"beam {beam}, generate of Hugging Face", "value": value, "note": note})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

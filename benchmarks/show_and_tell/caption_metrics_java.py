"""The peer of caption_metrics.py: coco-caption's Java tools on the captions of a JSON file, run in their environment.

<python of pycocoevalcap> caption_metrics_java.py CAPTIONS.json SCORES.json
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pycocoevalcap
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

METEOR = Path(next(iter(pycocoevalcap.__path__))) / "meteor"
STAGES = ["-m", "exact stem", "-w", "1.0 0.6"]
WIDE = ["-x", "5000"]  # its beam, 40, does not always find the best alignment


def meteor(references: dict, hypotheses: dict, options: list[str]) -> float:
    """As pycocoevalcap calls it, with other stages."""
    command = ["java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm", *options]
    tool = subprocess.Popen(command, cwd=METEOR, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)  # fmt: skip

    def asked(line: str) -> str:
        tool.stdin.write(line + "\n")
        tool.stdin.flush()
        return tool.stdout.readline().strip()

    each = [asked(" ||| ".join(["SCORE", *references[key], hypotheses[key][0]])) for key in hypotheses]
    asked(" ||| ".join(["EVAL", *each]))
    lines = [tool.stdout.readline() for _ in each]  # the other images' scores, then that of all
    tool.stdin.close()
    tool.wait()
    return float(lines[-1])


def measured(hypotheses: list[str], references: list[list[str]]) -> dict:
    """Scores, seconds of all that our metric does, tokens."""
    start, tokenizer = time.perf_counter(), PTBTokenizer()
    theirs = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
    ours = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(hypotheses)})
    bleu = Bleu(4).compute_score(theirs, ours, verbose=0)[0]
    values = {f"bleu{n}": value for n, value in enumerate(bleu, 1)}
    values["rouge_l"] = float(Rouge().compute_score(theirs, ours)[0])
    values["cider"] = float(Cider().compute_score(theirs, ours)[0])
    values["meteor_exact_stem"] = meteor(theirs, ours, STAGES)
    seconds = time.perf_counter() - start
    return {
        "values": values | {"meteor_exact_stem_wide": meteor(theirs, ours, STAGES + WIDE)},
        "meteor": meteor(theirs, ours, []),
        "seconds": seconds,
        "tokens": [[text.split() for text in ours[i] + theirs[i]] for i in ours],
    }


if __name__ == "__main__":
    sets = json.loads(Path(sys.argv[1]).read_text())
    found = {name: measured(made["hypotheses"], made["references"]) for name, made in sets.items()}
    Path(sys.argv[2]).write_text(json.dumps(found))

r"""What of an image stays, by how far it is noised before it is drawn again (SDEdit); of a DiNof up to T_m, its flow's time.

    python pipelines/train.py digits_dinof
    python benchmarks/editing.py RUN [NUM] [--out FILE.png]

NUM test images are diffused to strength * T_m (T where the model is no DiNof) and drawn from there by the reverse SDE, 100
steps. The last row has samples, which begin with the flow's law.

    distance  root mean square change of a pixel, in units of the data, [-1, 1]
    class     share of the images whose class, as a classifier of digits sees it, is the same before and after
    FD        Frechet distance of the edited images to training data, in that classifier's features

FILE.png has some images, and below them what becomes of them at each strength.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from indm_core.draw import draw_by
from indm_core.model import GenerativeModel
from indm_core.sampling import Sampling
from pipelines.config.store import configuration, load
from pipelines.config.weights import Weights
from pipelines.evaluation.features.reference import split_rows
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.results.estimates import ReferenceFeatures, frechet
from pipelines.evaluation.sampling.shown import shown
from pipelines.evaluation.settings import Settings
from pipelines.runs.pictures import image_grid, pixels
from pipelines.storage.outputs import output_root

SHOWN = 16
STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def edited(model: GenerativeModel, x: Tensor, strength: float) -> Tensor:
    """The images (n, *shape), noised as far as `strength` and drawn again; at 0 samples."""
    sampling = Sampling(sampler="em", steps=100)
    if not strength:
        return draw_by(model, range(len(x)), sampling).x
    return draw_by(model, range(len(x)), sampling, x, strength=strength).x


def main() -> int:
    """Prints the table, and draws the picture."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("run")
    parser.add_argument("num", nargs="?", type=int, default=300)
    parser.add_argument("--out", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    run, num = Weights.named(asked.run), asked.num
    spec, model = configuration(run)[1], load(run).requires_grad_(False)
    plan = Plan.of([run], Settings(samples=num), output_root(None))
    classify = plan.extractor.make()
    reference = ReferenceFeatures(classify.evaluate(split_rows(plan.data, plan.card, "train"))[0])
    k = plan.test[:num]
    x = spec.to_model(k, torch.Generator().manual_seed(0))
    before = classify.evaluate(k)[1].argmax(1)
    print(f"t_start = {model.t_start:g}\nstrength  distance         class            FD, at infinite n")
    rows = [k[:SHOWN]]
    for strength in (*STRENGTHS, 0.0):
        made = edited(model, x, strength)
        values = shown(made, spec).values
        features, logits = classify.evaluate(values)
        distance = (made - x).square().flatten(1).mean(1).sqrt()
        same = (logits.argmax(1) == before).double()
        found = frechet(features, reference)
        print(
            f"{f'{strength:g}' if strength else 'samples':<9} {distance.mean():.3f} +- {distance.std() / len(x) ** 0.5:.3f}  "
            f"{same.mean():.3f} +- {same.std() / len(x) ** 0.5:.3f}  {found.value:6.2f} {found.at_infinity:6.2f} +- "
            f"{found.at_infinity_se:.2f}",
            flush=True,
        )
        rows.append(values[:SHOWN].to(k.dtype))
    if asked.out:
        image_grid(pixels(torch.cat(rows), spec), columns=SHOWN).save(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

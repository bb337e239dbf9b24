r"""A conditional run of digits: what guidance does, and what a label is worth to the likelihood.

    python pipelines/train.py digits_conditional
    python benchmarks/guidance.py RUN [NUM]

NUM samples, all classes alike, by DEIS with 20 evaluations, for guidance 0, 1, 2 and 4: the accuracy of a classifier that was
trained on the data alone, the Frechet distance in its features, and the spread of a class: the mean squared distance of its
features from their mean, over that of data. NLL and NELBO of test images, each given its label and not, on the same draws:
bits/dim, paired.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from indm_core.likelihood import nelbo, nll
from pipelines.config.store import configuration, load
from pipelines.config.weights import Weights
from pipelines.data.shards import read_labels
from pipelines.evaluation.features.reference import split_rows
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.results.estimates import ReferenceFeatures, frechet
from pipelines.evaluation.sampling.shown import shown
from pipelines.evaluation.settings import Settings
from pipelines.storage.outputs import output_root


def spread(features: Tensor, labels: Tensor, classes: int) -> float:
    """The mean over classes of the mean squared distance from the class's mean."""
    return float(sum(features[labels == c].var(0).sum() for c in range(classes)) / classes)


def mean_and_error(values: Tensor) -> str:
    return f"{float(values.mean()):8.4f} +- {float(values.std()) / len(values) ** 0.5:.4f}"


def main() -> int:
    """Prints both tables."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    run, num = Weights.named(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    spec, model = configuration(run)[1], load(run)
    plan = Plan.of([run], Settings(samples=num), output_root(None))
    classify = plan.extractor.make()
    labels, train_labels = plan.test_labels.long(), torch.from_numpy(read_labels(plan.data, plan.card, "train")).long()
    features, logits = classify.evaluate(plan.test)
    real = classify.evaluate(split_rows(plan.data, plan.card, "train"))[0]
    of_data = spread(real, train_labels, spec.num_classes)
    print(f"test images: accuracy {float((logits.argmax(1) == labels).double().mean()):.3f}")
    reference, y = ReferenceFeatures(real), torch.arange(num) % spec.num_classes
    for guidance in (0.0, 1.0, 2.0, 4.0):
        x = shown(model.sample(num, sampler="deis", nfe=20, label=y, guidance=guidance, batch_size=250), spec).values
        features, logits = classify.evaluate(x)
        right = (logits.argmax(1) == y).double()
        distance = frechet(features, reference)
        print(
            f"guidance {guidance:g}: accuracy {float(right.mean()):.3f} +- {float(right.std()) / num**0.5:.3f}, FD "
            f"{distance.value:.2f} +- {distance.se:.2f} (at infinite n {distance.at_infinity:.2f} +- "
            f"{distance.at_infinity_se:.2f}), spread {spread(features, y, spec.num_classes) / of_data:.3f} of the data's",
            flush=True,
        )
    measures = {"NELBO": partial(nelbo, num_draws=16), "NLL": partial(nll, rtol=1e-4, atol=1e-4)}
    for name, measure in measures.items():
        found = []
        for given in (labels, None):
            generator = torch.Generator().manual_seed(0)
            x = spec.to_model(plan.test, generator)
            found.append(spec.in_unit(measure(model, x, generator=generator, y=given)))
        of_label, without = found
        print(
            f"{name} bits/dim: given its label {mean_and_error(of_label)}, without {mean_and_error(without)}, "
            f"difference {mean_and_error(of_label - without)} ({len(labels)} test images)",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

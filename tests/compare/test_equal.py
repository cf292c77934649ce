"""Models of equal size: what has no feed-forward layers stays as it is."""

from pathlib import Path

from flowformer.compare.equal import equal_parameters
from flowformer.compare.plan import make_plan
from flowformer.data import load_uea
from flowformer.models.series.model import build_classifier
from flowformer.recipes import RECIPES


def test_encoders_without_feedforward_layers_stay_as_they_are():
    methods = {"flow": {}, "lstm": {}, "dilated-conv": {}}
    plan = make_plan([RECIPES["japanese-vowels"]()], methods, seeds=1, root=Path("c"))
    resized, sizes = equal_parameters(plan)
    assert [size.method for size in sizes] == list(methods)
    data = load_uea("JapaneseVowels")
    for size, run, before in list(zip(sizes, resized.runs, plan.runs, strict=True))[1:]:
        assert run == before
        model = build_classifier(
            run.request.config.model,
            channels=data.channels,
            num_classes=len(data.classes),
            max_length=data.max_length,
        )
        count = sum(each.numel() for each in model.parameters())
        assert str(size) == (
            f"JapaneseVowels {size.method}: as it is, without feed-forward layers, "
            f"{count:,} parameters"
        )

"""`flowformer linearize MODEL --text FILE`: from softmax attention to a mixer with a state."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flowformer.cli.parsing import parse
from flowformer.config_json import to_plain
from flowformer.files import write_atomically
from flowformer.integrations.linearize_settings import LinearizeSettings
from flowformer.models.known_mixers import check_mixer_options, require_form


@dataclass(frozen=True, kw_only=True)
class Options(LinearizeSettings):
    """Exchange the softmax attention of a language model for a mixer with a state.

    Each new attention learns to give what the old one gave (a), then the whole is fine-tuned (b);
    the report has what held-out text is predicted like before and after each, and what a token
    costs over the context. The folder holds the model and its tokenizer, for from_pretrained.

    Attributes:
        model: a language model of transformers, a folder or a name on the hub; or the folder of a
            run of flowformer train with softmax attention, which becomes a GPT-2.
        text: files of text to learn from; the end of the last is held out.
        layers: Layers to exchange, from 0, such as 0-11 or 0,2,4-7; by default all.
        keep: Layers among them that stay softmax, such as 3,7.
        device: where to compute; by default on a GPU where there is one.
        output: the folder to make.
    """

    model: str
    text: tuple[Path, ...] = ()
    layers: str | None = None
    keep: str | None = None
    device: str | None = None
    output: Path = Path("linearized")

    def __post_init__(self) -> None:
        """Refuse at once what can be seen without the model.

        Raises:
            FileNotFoundError: there is no such text.
            FileExistsError: the output folder holds something.
            ValueError: there is no text, or a setting is out of its range.
        """
        super().__post_init__()
        if not self.text:
            raise ValueError("give the text to learn from: --text FILE")
        for file in self.text:
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file of text")
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise FileExistsError(f"{self.output} is not empty: choose another --output")


_PATIENCE = 10.0  # seconds in which the hub is to answer


def require_model(name: str) -> None:
    """Refuse a model that is nowhere, before transformers looks for it for a minute or more.

    It may be a folder, one that was kept from the hub, or on the hub, which is asked once.

    Raises:
        FileNotFoundError: it is none of these, or the hub cannot be asked.
    """
    if Path(name).is_dir():
        return
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache
    except ImportError:  # transformers is missing then, which is told where it is needed
        return
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
    except ValueError:  # no name that the hub could have, but a path
        raise FileNotFoundError(f"{name}: no such folder of a model") from None
    sys.stderr.write(f"{name}: no such folder here, nor kept from the hub: asking the hub\n")
    try:
        HfApi().model_info(name, timeout=_PATIENCE)
    except Exception as error:
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FileNotFoundError(
            f"{name}: no such folder of a model here, and not to be had from the hub: {cause}"
        ) from error


def main(arguments: list[str]) -> int:
    """Linearize a model, and write it, its figures and the report."""
    options = parse(Options, arguments, prog="flowformer linearize")
    require_form(options.mixer, "causal", "a language model")
    check_mixer_options(options.mixer, options.mixer_options)
    require_model(options.model)
    texts = [file.read_text(encoding="utf-8") for file in options.text]
    import torch

    from flowformer.integrations.transformers import linearize
    from flowformer.integrations.transformers.linearizing.linearize import checked_settings
    from flowformer.report.linearize import stage_lines, write_linearize_report

    settings = {field.name: getattr(options, field.name) for field in fields(LinearizeSettings)}
    checked_settings(**settings)
    model, tokenizer = _load(options.model, options.length, options.contexts)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    done = linearize(model.to(device), tokenizer, texts, **settings)
    done.model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    result = _result(options.model, done)
    text = json.dumps(_finite(result), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(options.output / "linearize.json", f"{text}\n")
    report = write_linearize_report(options.output / "report", result)
    lines = [*stage_lines(result), f"model: {options.output}", f"report: {report}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _load(name: str, length: int, contexts: Sequence[int]) -> tuple[Any, Any]:
    """Return a model and its tokenizer: of a run of ours, or of transformers."""
    if (Path(name) / "weights.safetensors").is_file():
        from flowformer.integrations.transformers.linearizing.measures import STEPS
        from flowformer.integrations.transformers.runs import convert_to_gpt2

        return convert_to_gpt2(name, at_least=max(length, max(contexts, default=0) + STEPS))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(name)


def _result(name: str, done: Any) -> dict[str, Any]:
    """Return what linearize.json holds."""
    return {
        "model": Path(name).name,
        "settings": to_plain(done.settings),
        "exchanged": done.exchanged,
        "kept": done.kept,
        "parameters": list(done.parameters),
        "stages": [{**to_plain(each), "perplexity": each.perplexity} for each in done.stages],
        "cost_before": to_plain(done.cost_before),
        "cost_after": to_plain(done.cost_after),
        "transfer_losses": done.transfer_losses,
        "tune_losses": done.tune_losses,
    }


def _finite(value: Any) -> Any:
    """Return what JSON can say of it: null in place of inf and nan."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

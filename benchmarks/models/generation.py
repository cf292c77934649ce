"""Does a generated token cost the same at the start and after 2,000 others, beside GPT-2's?

A Flowformer and transformers' GPT-2 of the same size (random parameters, one sequence, greedy) each
continue a prompt token by token, one of ours and one of theirs in turn, so that a disturbance hits
both. A state of constant size should make the last hundred tokens as fast as the first hundred; the
keys and values of a softmax cache grow with every token.

    python -m benchmarks generation --layers flow,gated,flow-gated

measures a token of a single mixer instead, 8 heads of 64 with their projections, after a few: the
least seconds of this thread, the mixers taking turns.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.pages import Pictures, Tables
from benchmarks.runner import (
    Result,
    alternate,
    ends,
    keep,
    over_rounds,
    pin,
    processor_seconds,
    share,
    some_of,
)
from flowformer.generation.steps import CarriedDecoder, Prompt
from flowformer.integrations.transformers.cache import CACHE, cache_keyword
from flowformer.models.language.config import LANGUAGE_PRESETS
from flowformer.models.language.model import LanguageModel
from flowformer.nn import MIXERS, build_mixer
from flowformer.ops import flow_attention, states_in_place
from flowformer.report.figures import BLUE, ORANGE, plain
from flowformer.report.words import MISSING, to_markdown

VOCABULARY = 50_257
AT_ENDS = 100  # tokens over which the median at either end is taken

LAYER = {"dim": 512, "num_heads": 8}  # of single mixers
SEQUENCES = 1, 8
TURNS = 20  # in each round

Step = Callable[[Tensor], Tensor]


def ours(preset: str, mixer: str, positions: int) -> LanguageModel:
    """Return a model of ours: the preset with that mixer."""
    config = replace(
        LANGUAGE_PRESETS[preset],
        mixer=mixer,
        mixer_options=None,
        max_length=positions,
        tie_embeddings=True,
    )
    torch.manual_seed(0)
    return LanguageModel(config, vocab_size=VOCABULARY).eval()


def theirs(preset: str, positions: int) -> GPT2LMHeadModel:
    """Return transformers' GPT-2 of that size."""
    sizes = LANGUAGE_PRESETS[preset]
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=positions,
        n_embd=sizes.dim,
        n_layer=sizes.num_layers,
        n_head=sizes.num_heads,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval()


def our_steps(model: LanguageModel, prompt: Tensor) -> tuple[Tensor, Step]:
    """Read the prompt; return the logits and what reads one token more."""
    decoder = CarriedDecoder(model)
    return decoder.start(Prompt(prompt, None)), decoder.step


def their_steps(model: GPT2LMHeadModel, prompt: Tensor) -> tuple[Tensor, Step]:
    """Read the prompt; return the logits and what reads one token more."""
    output: Any = model(prompt, use_cache=True)
    cache = getattr(output, CACHE)

    def step(token: Tensor) -> Tensor:
        output: Any = model(token[:, None], use_cache=True, **cache_keyword(cache))
        return output.logits[:, -1]

    return output.logits[:, -1], step


@torch.no_grad()
def generate(sides: dict[str, tuple[Tensor, Step]], tokens: int) -> dict[str, list[float]]:
    """Return the seconds of each token, the sides taking turns."""
    chosen = {name: logits.argmax(-1) for name, (logits, _) in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(tokens):
        for name, (_, step) in sides.items():
            start = time.perf_counter()
            chosen[name] = step(chosen[name]).argmax(-1)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(seconds: list[float], at_ends: int) -> dict[str, float]:
    """Return the medians of the first and the last tokens, their ratio, and tokens per second."""
    return ends(seconds, at_ends) | {"tokens_per_second": len(seconds) / sum(seconds)}


def layer_step(mixer: str, sequences: int) -> Callable[[], None]:
    """Return what reads one token more with a single mixer, its state written in place."""
    torch.manual_seed(0)
    layer = build_mixer(mixer, **LAYER).eval()
    first, token = (torch.randn(sequences, tokens, LAYER["dim"]) for tokens in (8, 1))
    with torch.no_grad():
        _, state = layer(first, causal=True, return_state=True)

    def step() -> None:
        nonlocal state
        with torch.no_grad(), states_in_place():
            _, state = layer(token, causal=True, state=state, return_state=True)

    return step


def measure_layers(mixers: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return the microseconds of a token by mixer and number of sequences; print them."""
    found: dict[str, dict[str, float]] = {mixer: {} for mixer in mixers}
    for sequences in SEQUENCES:
        sides = {mixer: layer_step(mixer, sequences) for mixer in mixers}
        how: dict[str, Any] = {"repeats": TURNS * rounds, "clock": processor_seconds}
        for mixer, seconds in alternate(sides, shortest=0.005, **how).items():
            found[mixer][str(sequences)] = 1e6 * min(seconds)
            least = f"{found[mixer][str(sequences)]:8.1f} µs a token"
            print(f"{mixer:<22}{sequences} sequences {least}", flush=True)
    return found


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "generation", rounds=3, threads=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--preset", default="gpt2", choices=sorted(LANGUAGE_PRESETS))
    parser.add_argument("--mixer", default="flow")
    about = "mixers, with commas between them: measure a token of a layer of each, and no model"
    parser.add_argument("--layers", type=some_of("mixer", MIXERS), default=[], help=about)


def execute(arguments: Namespace) -> None:
    """Measure, print and save."""
    pin(arguments.threads)
    if arguments.layers:
        found = measure_layers(arguments.layers, arguments.rounds)
        keep(arguments.output, ["layers"], {**LAYER, "microseconds": found})
    else:
        keep(arguments.output, ["models"], measure_models(arguments))


def measure_models(arguments: Namespace) -> Result:
    """Measure the models token by token; print and return what it took."""
    tokens, prompt_length = arguments.tokens, arguments.prompt
    at_ends = min(AT_ENDS, tokens // 2)
    positions = prompt_length + tokens
    own = ours(arguments.preset, arguments.mixer, positions)
    gpt2 = theirs(arguments.preset, positions)
    sizes = {
        name: sum(p.numel() for p in model.parameters())
        for name, model in (("ours", own), ("gpt2", gpt2))
    }
    print(f"parameters: ours {sizes['ours']:,}, GPT-2 {sizes['gpt2']:,}", flush=True)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(VOCABULARY, (1, prompt_length), generator=generator)
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "gpt2": []}
    for turn in range(arguments.rounds):
        taken: dict[str, list[float]] = {}
        with torch.no_grad():
            for count in (min(10, tokens), tokens):  # the first time only loads code
                sides = {"ours": our_steps(own, prompt), "gpt2": their_steps(gpt2, prompt)}
                taken = generate(sides, count)
        for name, seconds in taken.items():
            summary = summarize(seconds, at_ends)
            rounds[name].append(summary)
            print(
                f"round {turn + 1}, {name}: {summary['first_ms']:.2f} ms a token at first, "
                f"{summary['last_ms']:.2f} at last ({summary['last_over_first']:.2f} times), "
                f"{summary['tokens_per_second']:.1f} tokens/s",
                flush=True,
            )
    return {
        "preset": arguments.preset,
        "mixer": arguments.mixer,
        "tokens": tokens,
        "prompt": prompt_length,
        "tokens_at_each_end": at_ends,
        "parameters": sizes,
        "medians": over_rounds(rounds),
        "rounds": rounds,
    }


def table(result: Result) -> str:
    """Return the time of a generated token at either end."""
    if "models" not in result:
        return MISSING
    result = result["models"]
    names = {
        "ours": f"`{result['preset']}` with `{result['mixer']}`",
        "gpt2": "transformers' GPT-2",
    }
    ends = result["tokens_at_each_end"]
    header = ["model", "parameters", f"ms a token, first {ends}", f"last {ends}", "last / first"]
    rows = [
        [
            names[key],
            f"{result['parameters'][key]:,}",
            *(f"{of[figure]:.1f}" for figure in ("first_ms", "last_ms")),
            f"{of['last_over_first']:.2f}",
        ]
        for key, of in result["medians"].items()
    ]
    return to_markdown(header, rows).rstrip()


def draw(result: Result) -> Figure | None:
    """Draw the time of a token at either end, and what a model carries from token to token."""
    if "models" not in result:
        return None
    result = result["models"]
    figure = Figure(figsize=(7.6, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    half = result["tokens_at_each_end"] / 2
    ends = [result["prompt"] + half, result["prompt"] + result["tokens"] - half]
    sides = {"ours": (BLUE, f"Flowformer, {result['mixer']}"), "gpt2": (ORANGE, "GPT-2, softmax")}
    for name, (colour, label) in sides.items():
        for at, taken in zip(ends, ("first_ms", "last_ms"), strict=True):
            rounds = [each[taken] for each in result["rounds"][name]]
            left.plot([at] * len(rounds), rounds, "o", markersize=3, color=colour)
        medians = [result["medians"][name][taken] for taken in ("first_ms", "last_ms")]
        left.plot(ends, medians, color=colour, label=label)
    plain(left, "ms a token: three rounds, and their median")
    left.set_ylim(0, None)
    sizes = LANGUAGE_PRESETS[result["preset"]]
    contexts = [2**power for power in range(8, 21)]
    carried = [_state_bytes(sizes.num_heads, sizes.dim // sizes.num_heads)] * len(contexts)
    cached = [2 * 4 * sizes.dim * context for context in contexts]  # float32 keys and values
    for of_a_layer, (colour, label) in zip((carried, cached), sides.values(), strict=True):
        total = [sizes.num_layers * each / 2**20 for each in of_a_layer]
        right.loglog(contexts, total, color=colour, label=label)
    plain(right, "MiB of what is carried")
    for axes in (left, right):
        axes.set_xlabel("tokens before it", fontsize=8)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _state_bytes(heads: int, width: int) -> int:
    """Return the bytes of the state of a layer of Flow-Attention."""
    token = torch.zeros(1, 1, heads, width)
    _, state = flow_attention(token, token, token, layout="bthd", causal=True, return_state=True)
    return sum(each.nbytes for each in state)


def layers_table(result: Result) -> str:
    """Return the time of a token in a single mixer, and how many times as long as in the first."""
    if "layers" not in result:
        return MISSING
    found = result["layers"]["microseconds"]
    first = next(iter(found.values()))
    header = ["mixer", *(f"{sequences} at once, µs" for sequences in first)]
    rows = [
        [f"`{mixer}`", *(f"{of[each]:.0f} ({of[each] / first[each]:.2f} ×)" for each in first)]
        for mixer, of in found.items()
    ]
    return to_markdown(header, rows).rstrip()


TABLES: Tables = {"generation": table, "generation_layers": layers_table}
PICTURES: Pictures = {"constant-cost.png": draw}

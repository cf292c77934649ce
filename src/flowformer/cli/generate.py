"""`flowformer generate RUN "PROMPT"`: a trained language model goes on with a text."""

import sys
from dataclasses import dataclass
from pathlib import Path

from flowformer.cli.parsing import parse


@dataclass(frozen=True, kw_only=True)
class Options:
    r"""Go on with a text, shown as it is made. Without sampling the most probable token is taken.

    Attributes:
        run: folder of the run of a language model.
        prompt: the text to go on with; - reads it from standard input.
        max_new_tokens: the most tokens that are made.
        sample: draw each token, in place of the most probable one.
        temperature: divides the logits before a draw.
        top_k: draw from so many most probable tokens only.
        top_p: draw from the fewest tokens that together have this probability.
        repetition_penalty: above 1 makes tokens that have occurred less probable.
        num_beams: above 1 looks for the most probable text, with so many at a time.
        stop: texts that end it, for example --stop "." $'\n\n'; they are no part of it.
        seed: of the draws.
    """

    run: Path
    prompt: str
    max_new_tokens: int = 200
    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None


def main(arguments: list[str]) -> int:
    """Write the prompt and what follows it."""
    options = parse(Options, arguments, prog="flowformer generate")
    draws = (options.temperature != 1, options.top_k is not None, options.top_p is not None)
    if any(draws) and not options.sample:
        raise ValueError("--temperature, --top-k and --top-p are for draws: give --sample too")
    from flowformer.generation.text import generate_text
    from flowformer.train.language.study import Language

    run = Language.load(options.run)
    if run.tokenizer is None:
        raise ValueError(f"{options.run} was trained on sums, and has no text to go on with")
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    waiting = [prompt]  # shown with what follows it: an error says no word of it

    def show(text: str) -> None:
        sys.stdout.write((waiting.pop() if waiting else "") + text)
        sys.stdout.flush()

    generate_text(
        run.model,
        run.tokenizer,
        prompt,
        max_new_tokens=options.max_new_tokens,
        stop_ids=run.stop_ids,
        stop_strings=options.stop,
        on_text=show,
        do_sample=options.sample,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        num_beams=options.num_beams,
        seed=options.seed,
    )
    show("\n")
    return 0

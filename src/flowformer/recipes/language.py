"""Language models: WikiText-103 as in the paper, text by characters, sums, recall, small machines.

WikiText-103: the published settings of fairseq's `transformer_lm` (Adam, inverse square root,
warm-up 6,000 from 1e-7; 2,048 tokens × 16 passes × 4 GPUs a step), and the perplexities of
Flowformer (ICML 2022), the table of WikiText-103. Weight decay alone differs: fairseq's is of all
parameters, here it is of the matrices.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from flowformer.models.language.config import LANGUAGE_PRESETS, LanguageModelConfig
from flowformer.train.config import ScheduledOptimizerConfig
from flowformer.train.language.config import LanguageConfig, LanguageTrainingConfig, TextDataConfig

SOURCE = "Flowformer (Wu et al., ICML 2022), WikiText-103 table"
FIGURES = (f"Of text, test perplexity of words, {SOURCE}.",)
SMALL = LanguageModelConfig(
    dim=128, num_heads=4, num_layers=4, feedforward=512, dropout=0.0, positions="sinusoidal"
)


def wikitext_103() -> LanguageConfig:
    """WikiText-103 by words, as published: 6 layers of 512, 150,000 steps of 131,072 tokens."""
    return LanguageConfig(
        name="wikitext-103",
        # Four samples of 512 are the 2,048 tokens of a pass; the four GPUs are in `accumulate`.
        data=TextDataConfig(corpus="wikitext-103", tokenizer="word", length=512, batch_size=4),
        model=LANGUAGE_PRESETS["wikitext-103"],
        optimizer=ScheduledOptimizerConfig(
            name="adamw",  # what fairseq calls adam decouples the weight decay
            learning_rate=1e-3,
            schedule="inverse-sqrt",
            warmup=6000,
            warmup_from=1e-7,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            gradient_clip=None,
        ),
        training=LanguageTrainingConfig(
            steps=150_000, evaluate_every=2_500, accumulate=64, context_window=400
        ),
        paper_dataset="wikitext-103",
        paper_perplexity=30.8,
        paper_source=SOURCE,
    )


def char_shakespeare() -> LanguageConfig:
    """Shakespeare's works by characters; any text with --data.corpus text --data.folder FILE."""
    return LanguageConfig(
        name="char-shakespeare",
        data=TextDataConfig(corpus="shakespeare", tokenizer="char", length=256, batch_size=16),
        model=replace(SMALL, max_length=256),
        optimizer=ScheduledOptimizerConfig(
            learning_rate=1e-3, warmup=100, betas=(0.9, 0.99), weight_decay=0.1
        ),
        training=LanguageTrainingConfig(steps=2000, evaluate_every=200, validation_tokens=100_000),
    )


def wiki_small() -> LanguageConfig:
    """Wikipedia articles by words, 1.4 million of them: for machines without a GPU."""
    return LanguageConfig(
        name="wiki-small",
        data=TextDataConfig(
            corpus="wiki-small", tokenizer="word", vocab_size=20_000, length=512, batch_size=4
        ),
        model=replace(SMALL, max_length=512, dropout=0.1),
        optimizer=ScheduledOptimizerConfig(
            learning_rate=1e-3, warmup=100, betas=(0.9, 0.98), weight_decay=0.01
        ),
        training=LanguageTrainingConfig(steps=1000, evaluate_every=100, context_window=400),
    )


def adder() -> LanguageConfig:
    """Sums of numbers of two digits, digit by digit, with the model gpt-nano.

    The published project draws as GPT-2 does, drops a tenth and has a rate of 5e-4: that way
    Flow-Attention learns every digit but the last one of a sum (docs/results.md).
    """
    return LanguageConfig(
        name="adder",
        data=TextDataConfig(corpus="addition", digits=2, length=6, batch_size=64),
        model=replace(LANGUAGE_PRESETS["gpt-nano"], initialization="fairseq", dropout=0.0),
        optimizer=ScheduledOptimizerConfig(
            learning_rate=2e-3, warmup=100, betas=(0.9, 0.95), weight_decay=0.1
        ),
        training=LanguageTrainingConfig(steps=3000, evaluate_every=500),
    )


def recall_small() -> LanguageConfig:
    """Recall: the values of 8 keys, each asked for once, in 64 tokens; minutes on one core."""
    return _recall("recall-small", "recall")


def copy_small() -> LanguageConfig:
    """Selective copying: 8 tokens among blanks, then in their order; minutes on one core."""
    return _recall("copy-small", "copy")


def induction_small() -> LanguageConfig:
    """Induction: what followed the mark among 64 tokens; minutes on one core."""
    return _recall("induction-small", "induction")


def _recall(name: str, corpus: str) -> LanguageConfig:
    """Return a recipe of ours: one model and one schedule for the tasks of recall."""
    return LanguageConfig(
        name=name,
        data=TextDataConfig(corpus=corpus, length=64, batch_size=32),
        model=LanguageModelConfig(
            dim=64,
            num_heads=2,
            num_layers=2,
            feedforward=128,
            max_length=64,
            dropout=0.0,
            positions="learned",
            normalization="rms",
            scale_embeddings=False,
            initialization="gpt2",
        ),
        optimizer=ScheduledOptimizerConfig(
            learning_rate=3e-3, warmup=100, floor=0.0, betas=(0.9, 0.98), weight_decay=0.1
        ),
        training=LanguageTrainingConfig(steps=1500, evaluate_every=300),
    )


RECIPES: Mapping[str, Callable[[], LanguageConfig]] = {
    "wikitext-103": wikitext_103,
    "wiki-small": wiki_small,
    "char-shakespeare": char_shakespeare,
    "adder": adder,
    "recall-small": recall_small,
    "copy-small": copy_small,
    "induction-small": induction_small,
}

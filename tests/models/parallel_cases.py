"""Models whose sequences are sharded over ranks: each is held to one process that has all of it."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import PairClassifier, SequenceClassifier
from tests.distributed_run import Case
from tests.ops.parallel.parallel_cases import equal, offsets, part, share

TOKENS = (5, 9, 2, 7)
VOCABULARY = 11


def cases() -> dict[str, Case]:
    """Every case by a name that says what is cut."""
    table: dict[str, Case] = {
        f"language, {positions}": partial(language, positions=positions)
        for positions in ("learned", "sinusoidal", "rotary")
    }
    return {
        **table,
        "language, padded": partial(language, padded=True),
        "language, packed": partial(language, packed=(3, 12, 1, 7)),
        "language, packed, rotary": partial(language, packed=(3, 12, 1, 7), positions="rotary"),
        "language, empty": partial(language, tokens=(0, 9, 0, 3)),
        "language, without logits": partial(language, return_logits=False, checkpointed=True),
        "language, gated": partial(language, mixer="gated"),
        "language, gated, padded": partial(language, mixer="gated", padded=True),
        "language, gated, empty": partial(language, mixer="gated", tokens=(0, 9, 0, 3)),
        "language, flow-gated": partial(language, mixer="flow-gated", padded=True),
        "language, two calls": two_calls,
        "sequence, cls": partial(sequence, pooling="cls"),
        "sequence, mean": partial(sequence, pooling="mean"),
        "sequence, first": partial(sequence, pooling="first"),
        "sequence, learned": partial(sequence, positions="learned"),
        "sequence, empty": partial(sequence, tokens=(0, 9, 0, 3), pooling="first"),
        **{
            f"sequence, {mixer}{kind}": partial(sequence, mixer=mixer, num_heads=4, **settings)
            for mixer in ("gated", "flow-gated")
            for kind, settings in {"": {}, ", empty": {"tokens": (0, 9, 0, 3)}}.items()
        },
        "pair": pair,
    }


def on_a_mesh() -> dict[str, Case]:
    """Data parallel beside sequence parallel, on four processes."""
    return {"DDP": partial(on_two_dimensions, ddp), "FSDP2": partial(on_two_dimensions, fsdp)}


def language_model(**settings: Any) -> LanguageModel:
    """A small model in float64, the same on every rank."""
    torch.manual_seed(1)
    config = LanguageModelConfig(
        dim=8, num_heads=2, num_layers=2, feedforward=16, max_length=64, dropout=0.0, **settings
    )
    return LanguageModel(config, vocab_size=VOCABULARY).double()


def language(
    group: ProcessGroup,
    *,
    tokens: Sequence[int] = TOKENS,
    padded: bool = False,
    packed: Sequence[int] | None = None,
    return_logits: bool = True,
    checkpointed: bool = False,
    **settings: Any,
) -> None:
    """Compare logits, loss, states and gradients."""
    lengths, rank = share(tokens, group.size()), group.rank()
    rows = 3 if packed is None else 1
    ids = torch.randint(VOCABULARY, (rows, sum(lengths)))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.2, -100)
    mask = torch.rand(ids.shape) < 0.6 if padded else None
    shared: dict[str, Any] = {"return_logits": return_logits, "use_cache": packed is None}
    if packed is not None:
        shared["cu_seqlens"] = offsets(packed)
    model = language_model(**settings)
    sharded = deepcopy(model)
    sharded.set_sequence_parallel(group)
    sharded.set_gradient_checkpointing(checkpointed)

    expected = model(ids, mask, labels, **shared)
    expected.loss.backward()
    local = None if mask is None else part(mask, lengths, rank)
    found = sharded(part(ids, lengths, rank), local, part(labels, lengths, rank), **shared)
    found.loss.backward()
    equal(found.loss, expected.loss, "loss")
    if return_logits:
        equal(found.logits, part(expected.logits, lengths, rank), "logits")
    if expected.states is not None:
        equal(found.states.position, expected.states.position, "position")
        for mine, whole in zip(found.states.layers, expected.states.layers, strict=True):
            for name, field in mine._asdict().items():
                equal(field, getattr(whole, name), name)
    equal_gradients(sharded, model, group)


def two_calls(group: ProcessGroup) -> None:
    """A state goes on to the next call, whose last logits come alone."""
    lengths, rank = share(TOKENS, group.size()), group.rank()
    model = language_model()
    sharded = deepcopy(model)
    sharded.set_sequence_parallel(group)
    ids = torch.randint(VOCABULARY, (2, 2, sum(lengths)))
    mask = torch.rand(ids.shape[1:]) < 0.6
    with torch.no_grad():
        first = model(ids[0], mask, use_cache=True)
        expected = model(ids[1], mask, past_states=first.states, last_logits_only=True)
        mine = part(ids[0], lengths, rank), part(mask, lengths, rank)
        first = sharded(*mine, use_cache=True)
        mine = part(ids[1], lengths, rank), part(mask, lengths, rank)
        found = sharded(*mine, past_states=first.states, last_logits_only=True)
    equal(found.logits, expected.logits, "last logits")


def sequence(group: ProcessGroup, *, tokens: Sequence[int] = TOKENS, **settings: Any) -> None:
    """Compare logits, loss and gradients of a classifier."""
    lengths, rank = share(tokens, group.size()), group.rank()
    torch.manual_seed(1)
    given: dict[str, Any] = {"num_heads": 2, "num_layers": 2, **settings}
    config = SequenceModelConfig(dim=8, feedforward=16, dropout=0.0, **given)
    model = SequenceClassifier(config, vocab_size=VOCABULARY, num_classes=3, max_length=64)
    model = model.double()
    sharded = deepcopy(model)
    sharded.set_sequence_parallel(group)
    ids = torch.randint(1, VOCABULARY, (3, sum(lengths)))
    ids[1, 11:] = 0
    labels = torch.tensor([0, 2, 1])
    expected = model(ids, labels=labels)
    found = sharded(part(ids, lengths, rank), labels=labels)
    compare_classifiers(sharded, model, found, expected, group)


def pair(group: ProcessGroup) -> None:
    """Compare logits, loss and gradients of a classifier of two documents."""
    lengths, others = share(TOKENS, group.size()), share((1, 2, 3, 4), group.size())
    torch.manual_seed(1)
    config = SequenceModelConfig(dim=8, num_heads=2, feedforward=16, dropout=0.0)
    model = PairClassifier(config, vocab_size=VOCABULARY, max_length=64).double()
    sharded = deepcopy(model)
    sharded.set_sequence_parallel(group)
    first = torch.randint(1, VOCABULARY, (2, sum(lengths)))
    second = torch.randint(1, VOCABULARY, (2, sum(others)))
    labels = torch.tensor([0, 1])
    rank = group.rank()
    expected = model(first, second, labels=labels)
    found = sharded(part(first, lengths, rank), part(second, others, rank), labels=labels)
    compare_classifiers(sharded, model, found, expected, group)


def compare_classifiers(
    sharded: nn.Module, model: nn.Module, found: Any, expected: Any, group: ProcessGroup
) -> None:
    """Compare what every rank has whole."""
    expected.loss.backward()
    found.loss.backward()
    equal(found.logits, expected.logits, "logits")
    equal(found.loss, expected.loss, "loss")
    equal_gradients(sharded, model, group)


def equal_gradients(sharded: nn.Module, model: nn.Module, group: ProcessGroup) -> None:
    """The mean of the ranks' gradients is that of one process."""
    for (name, mine), whole in zip(sharded.named_parameters(), model.parameters(), strict=True):
        assert mine.grad is not None, name
        assert whole.grad is not None, name
        mean = mine.grad.clone()
        dist.all_reduce(mean, group=group)
        equal(mean / group.size(), whole.grad, f"gradient of {name}")


def on_two_dimensions(
    wrap: Callable[[LanguageModel, Any], tuple[nn.Module, Callable[[], list[Tensor]]]],
    group: ProcessGroup,
) -> None:
    """Two rows of a batch by data parallel, each sharded over two ranks: as one process."""
    assert group.size() == 4
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
    lengths = share(TOKENS, 2)
    ids = torch.randint(VOCABULARY, (2, 1, sum(lengths)))
    model = language_model()
    sharded = deepcopy(model)
    sharded.set_sequence_parallel(mesh["sequence"])
    wrapped, gradients = wrap(sharded, mesh)

    expected = torch.stack([model(each, labels=each).loss for each in ids]).mean()
    expected.backward()
    mine = part(ids[mesh.get_local_rank("data")], lengths, mesh.get_local_rank("sequence"))
    loss = wrapped(mine, labels=mine).loss
    loss.backward()
    dist.all_reduce(loss := loss.detach())
    equal(loss / 4, expected.detach(), "loss")
    for grad, (name, whole) in zip(gradients(), model.named_parameters(), strict=True):
        assert whole.grad is not None, name
        equal(grad, whole.grad, f"gradient of {name}")


def ddp(model: LanguageModel, mesh: Any) -> tuple[nn.Module, Callable[[], list[Tensor]]]:
    """Every rank has all parameters; DDP takes the mean over both dimensions."""
    del mesh

    def gradients() -> list[Tensor]:
        return [each.grad for each in model.parameters() if each.grad is not None]

    return DistributedDataParallel(model), gradients


def fsdp(model: LanguageModel, mesh: Any) -> tuple[nn.Module, Callable[[], list[Tensor]]]:
    """Parameters are sharded over the ranks of a sequence and repeated over the data's."""
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)

    def gradients() -> list[Tensor]:
        grads = [each.grad for each in model.parameters()]
        return [grad.full_tensor() for grad in grads if isinstance(grad, DTensor)]

    return model, gradients

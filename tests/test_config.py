"""Configurations: every wrong value is named, and no field is dead."""

import dataclasses
import functools
import re
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jax
import jax.extend
import numpy as np
import pytest
from models import BART, BERT, CONFIGS, GPT2, LLAMA, RECURRENT, RMS, T5, attention, inputs, stack, tokens
from tiers import tiered

from zoo import config as zoo_config
from zoo.config import (
    AlibiConfig,
    AttentionConfig,
    AttentionPoolConfig,
    AudioConfig,
    ClassifierHead,
    ConvolutionConfig,
    DisentangledConfig,
    DualConfig,
    DynamicScaling,
    EmbeddingHead,
    ExpertsConfig,
    GridBiasConfig,
    ImageTokenizerConfig,
    LanguageModelHead,
    LearnedPositions,
    LinearScaling,
    LocalConfig,
    LongRopeScaling,
    MlpConfig,
    NormConfig,
    PatchConfig,
    RecurrentConfig,
    RelativeBiasConfig,
    RotaryConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.image_tokens import ImageTokenizer
from zoo.recurrent import Recurrent
from zoo.serialization import as_dict, from_dict
from zoo.transformer import Transformer

WRONG = {
    "num_layers is 0": lambda: stack(num_layers=0),
    "num_kv_heads is 3": lambda: attention(num_kv_heads=3),
    "kind is 'batch'": lambda: NormConfig(kind="batch"),
    "scale is False with bias=True": lambda: NormConfig(scale=False),
    "activation is 'swish'": lambda: MlpConfig(hidden_size=4, activation="swish"),
    "clamp is 7.0 with gated=False": lambda: MlpConfig(hidden_size=4, clamp=7.0),
    "norm_slots contains": lambda: stack(norm_slots=("pre",)),
    "name each slot once": lambda: stack(norm_slots=("input", "input")),
    "dropout is 1.0": lambda: stack(dropout=1.0),
    "softcap is 0": lambda: attention(softcap=0.0),
    "qk_norm_over is set without qk_norm": lambda: attention(qk_norm_over="projection"),
    "size is 3": lambda: RotaryConfig(size=3),
    "does not fit heads of size 4": lambda: attention(rotary=RotaryConfig(size=8)),
    "only 'last' reads it": lambda: ClassifierHead(num_classes=2, padding_id=0),
    "one per rotated pair": lambda: attention(
        rotary=RotaryConfig(
            scaling=LongRopeScaling(short_factors=(1.0,), long_factors=(1.0,), original_length=4, attention_factor=1.0)
        )
    ),
    "num_selected is 5": lambda: ExpertsConfig(num_experts=4, num_selected=5),
    "at most one of the two": lambda: LocalConfig(window=(1, 1), chunk=2),
    "no 'input' norm to leave out": lambda: stack(first_norm=False, norm_slots=("residual",)),
    "TokenHead has transform_bias=False": lambda: TokenHead(num_classes=2, transform_bias=False),
    "LanguageModelHead.transform_bias is False without": lambda: LanguageModelHead(transform_bias=False),
    "pooler_bias=False and pooler_norm=None without a pooler": lambda: ClassifierHead(num_classes=2, pooler_bias=False),
    "DisentangledConfig.span is 3": lambda: DisentangledConfig(span=3),
    "DisentangledConfig.terms is empty": lambda: DisentangledConfig(span=4, terms=()),
    "more than span / 2": lambda: DisentangledConfig(span=8, max_distance=5),
    "a key head for each query head": lambda: attention(num_kv_heads=2, disentangled=DisentangledConfig(span=4)),
    "disentangled in a causal stack": lambda: stack(
        causal=True, attention=attention(disentangled=DisentangledConfig(span=4))
    ),
    "memory has no distance": lambda: stack(cross_attention=attention(disentangled=DisentangledConfig(span=4))),
    "window is 2": lambda: ConvolutionConfig(window=2),
    "reads the future": lambda: stack(causal=True, convolution=ConvolutionConfig(window=3)),
    "exactly when the pattern has 'local' layers": lambda: stack(pattern=("local",)),
    "pattern has 3 entries": lambda: stack(pattern=("global",) * 3),
    "num_unique_layers is 3": lambda: stack(num_unique_layers=3),
    "needs the 'input' slot": lambda: stack(branches="parallel_shared_norm", norm_slots=("output",)),
    "parallel branches share one sum": lambda: stack(branches="parallel", norm_slots=("residual",)),
    "num_buckets is 5": lambda: RelativeBiasConfig(num_buckets=5),
    "image_size is 3": lambda: PatchConfig(image_size=3, patch_size=4),
    "without class_token": lambda: PatchConfig(image_size=8, patch_size=4, class_token=False, distillation_token=True),
    "only 'token' reads it": lambda: EmbeddingHead(token_id=4),
    "give an EmbeddingHead with normalize": lambda: DualConfig(text=CONFIGS["clip"], image=CONFIGS["vit"]),
    "num_ids is 4 with tied=True": lambda: LanguageModelHead(num_ids=4),
    "exactly with 'attention'": lambda: EmbeddingHead(pooling="attention"),
    "give one of the two": lambda: ClassifierHead(num_classes=2, pooling="last", end_id=2, padding_id=1),
    "padding_id without an offset": lambda: LearnedPositions(max_length=4, padding_id=1),
    "one of the two": lambda: LearnedPositions(max_length=4, offset=2, padding_id=1, over_mask=True),
    "both vocab_size and patches": lambda: tokens(patches=PatchConfig(image_size=12, patch_size=4)),
    "neither encoder nor decoder": lambda: TransformerConfig(embedding=tokens()),
    "a decoder is causal": lambda: TransformerConfig(embedding=tokens(), decoder=stack()),
    "exactly when there is an encoder": lambda: dataclasses.replace(T5, encoder=None),
    "only a decoder attends to an encoder": lambda: TransformerConfig(
        embedding=tokens(), encoder=stack(cross_attention=attention())
    ),
    "over_mask or padding_id without": lambda: LearnedPositions(max_length=4, over_mask=True),
    "or one of the two": lambda: ClassifierHead(num_classes=2, projection=4, pooler="tanh"),
    "patches_only without patches": lambda: dataclasses.replace(BERT, head=TokenHead(num_classes=2, patches_only=True)),
    "memory_width without both": lambda: dataclasses.replace(BERT, memory_width=16),
    "output_width without a decoder": lambda: dataclasses.replace(BERT, output_width=16),
    "need its width": lambda: dataclasses.replace(GPT2, output_width=8),
    "decoder_embedding without both stacks": lambda: dataclasses.replace(GPT2, decoder_embedding=tokens()),
    "a shared table has": lambda: dataclasses.replace(
        BART, decoder_embedding=dataclasses.replace(BART.decoder_embedding, width=8)
    ),
    "the image needs 10": lambda: dataclasses.replace(
        CONFIGS["vit"].embedding, positions=LearnedPositions(max_length=9)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


@pytest.mark.parametrize("name", [*CONFIGS, *RECURRENT])
def test_json_round_trip(name):
    import json

    config = (CONFIGS | RECURRENT)[name]
    assert from_dict(type(config), json.loads(json.dumps(as_dict(config))), "x") == config


def test_json_errors_name_field_and_reason():
    fields = as_dict(BERT)
    fields["encoder"]["num_layers"] = 0
    with pytest.raises(ValueError, match=r"here does not describe .*num_layers is 0.*encoder"):
        from_dict(TransformerConfig, fields, "here")
    fields = as_dict(BERT)
    fields["encoder"]["attention"]["num_head"] = 1
    with pytest.raises(ValueError, match=r"num_head.*encoder\.attention"):
        from_dict(TransformerConfig, fields, "here")
    fields = as_dict(BERT)
    fields["head"]["kind"] = "NoHead"
    with pytest.raises(ValueError, match=r"kind is 'NoHead'"):
        from_dict(TransformerConfig, fields, "here")


# No dead fields: a field is alive if, in some configuration, another value of it changes the traced program.


def _classes() -> list[type]:
    everything = vars(zoo_config).values()
    # A dual model is two of these; tests/test_dual.py has it.
    return [c for c in everything if isinstance(c, type) and dataclasses.is_dataclass(c) and c is not DualConfig]


_INSTANCES: dict[type, tuple[Any, ...]] = {
    NormConfig: (RMS,),
    RotaryConfig: (RotaryConfig(),),
    LinearScaling: (LinearScaling(factor=3.0),),
    DynamicScaling: (DynamicScaling(factor=3.0, original_length=4),),
    LearnedPositions: (LearnedPositions(max_length=50),),
    AlibiConfig: (AlibiConfig(),),
    GridBiasConfig: (GridBiasConfig(rows=2, columns=4),),
    AttentionPoolConfig: (AttentionPoolConfig(attention=attention(), mlp=MlpConfig(hidden_size=20)),),
    RelativeBiasConfig: (RelativeBiasConfig(num_buckets=4, max_distance=9),),
    LocalConfig: (LocalConfig(window=(1, 1)),),
    AttentionConfig: (attention(),),
    zoo_config.MlpConfig: (zoo_config.MlpConfig(hidden_size=20),),
    DisentangledConfig: (DisentangledConfig(span=6),),
    ConvolutionConfig: (ConvolutionConfig(window=5),),
    ExpertsConfig: (ExpertsConfig(num_experts=2, num_selected=1),),
    LanguageModelHead: (LanguageModelHead(bias=True),),
    AudioConfig: (AudioConfig(num_mels=6, max_length=7),),
    PatchConfig: (PatchConfig(image_size=12, patch_size=6),),
    zoo_config.StackConfig: (stack(causal=True), stack(dropout=0.3)),
    zoo_config.EmbeddingConfig: (tokens(vocab_size=47),),
}


def _alternatives(kind: Any, value: Any) -> list[Any]:
    """Other values of a field of type `kind`."""
    if get_origin(kind) is Literal:
        return [choice for choice in get_args(kind) if choice != value]
    if get_origin(kind) in (Union, types.UnionType):
        others = [None] if value is not None and types.NoneType in get_args(kind) else []
        for member in get_args(kind):
            if member is not types.NoneType:
                others += _alternatives(member, value)
        return others
    if get_origin(kind) is tuple:
        items, item = list(value or ()), get_args(kind)[0]
        if item is float:
            return [tuple(2 * x for x in items)]
        if item is int:
            return [tuple(x + 1 for x in items) or (1, 1)]
        return [
            tuple(items[:-1]),
            *((*items, choice) for choice in get_args(item) if choice not in items),
        ]
    if dataclasses.is_dataclass(kind):
        return [other for other in _INSTANCES.get(kind, ()) if other != value]
    return {bool: [not value], int: [(value or 0) + 2, 4], float: [(value or 1.0) * 1.7, 0.3]}[kind]


def _places(config: Any, wanted: type):
    """(function that puts another instance in, instance) for every instance of a class inside a configuration."""
    if type(config) is wanted:
        yield (lambda new: new), config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        several = value if isinstance(value, tuple) else (value,)
        for index, part in enumerate(several):
            if not dataclasses.is_dataclass(part):
                continue
            for put, found in _places(part, wanted):

                def place(new, put=put, name=field.name, value=value, index=index):
                    new = put(new)
                    new = (*value[:index], new, *value[index + 1 :]) if isinstance(value, tuple) else new
                    return dataclasses.replace(config, **{name: new})

                yield place, found


def _module(config: Any) -> tuple[Any, dict[str, Any]]:
    """A configuration's module, and inputs for it."""
    if isinstance(config, ImageTokenizerConfig):
        return ImageTokenizer(config), {"pixel_values": np.zeros((2, 3, config.image_size, config.image_size))}
    return Recurrent(config) if isinstance(config, RecurrentConfig) else Transformer(config), inputs(config)


@functools.cache
def _program(config: Any) -> tuple[str, list[np.ndarray]]:
    """Initialisation and the forward pass in training as JAX traces them: the text, and the constants in it."""
    model, given = _module(config)
    if "input_ids" in given:  # padding: some fields say what it does
        given["attention_mask"] = np.ones_like(given["input_ids"])
        given["attention_mask"][1, -3:] = 0

    def run(rng):
        params = model.init(rng, **given)["params"]
        training = {} if isinstance(config, ImageTokenizerConfig) else {"dropout_rng": rng}
        return params, model.apply({"params": params}, **given, **training)

    traced = jax.make_jaxpr(run)(jax.random.key(0))
    return re.sub("0x[0-9a-f]+", "address", str(traced)), list(_constants(traced))


def _constants(traced: Any):
    """The constants of a traced program and of the programs in it."""
    yield from (np.asarray(x) for x in traced.consts if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
    for equation in traced.jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values())):
            if isinstance(inner, jax.extend.core.ClosedJaxpr):
                yield from _constants(inner)


def _differs(old: TransformerConfig, new: TransformerConfig) -> bool:
    (old_text, old_constants), (new_text, new_constants) = _program(old), _program(new)
    if old_text != new_text:
        return True
    return not all(np.array_equal(a, b) for a, b in zip(old_constants, new_constants, strict=True))


def _is_alive(cls: type, field: dataclasses.Field) -> bool:
    kind = get_type_hints(cls)[field.name]
    for config in (*CONFIGS.values(), *RECURRENT.values(), ImageTokenizerConfig(image_size=12, patch_size=4)):
        for put, found in _places(config, cls):
            for value in _alternatives(kind, getattr(found, field.name)):
                try:
                    new = put(dataclasses.replace(found, **{field.name: value}))
                except ValueError:
                    continue  # refused: that alone does not show that the field is read
                if _differs(config, new):
                    return True
    return False


@pytest.mark.parametrize("cls", tiered(_classes(), _classes()[::5]), ids=lambda cls: cls.__name__)
def test_no_dead_fields(cls):
    dead = [field.name for field in dataclasses.fields(cls) if not _is_alive(cls, field)]
    assert not dead, f"{cls.__name__}: no configuration runs another program with another {', '.join(dead)}"


def test_a_dead_field_would_be_found():
    """Equal configurations trace to equal programs, and a difference anywhere in a configuration is seen."""

    @dataclasses.dataclass(frozen=True)
    class WithDeadField(zoo_config.StackConfig):
        unread: int = 0

    fields = {field.name: getattr(GPT2.decoder, field.name) for field in dataclasses.fields(GPT2.decoder)}
    old, new = (dataclasses.replace(GPT2, decoder=WithDeadField(**fields, unread=value)) for value in (0, 1))
    assert old != new
    assert not _differs(old, new)
    assert _differs(GPT2, dataclasses.replace(GPT2, decoder=dataclasses.replace(GPT2.decoder, dropout=0.5)))


def test_llama_configuration_is_family_decoder_only():
    assert (LLAMA.family, BERT.family, T5.family) == ("decoder-only", "encoder-only", "encoder-decoder")

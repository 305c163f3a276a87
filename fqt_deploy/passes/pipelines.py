"""The order of all passes, as flat lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fqt_deploy.core.graph import ActivationGrid, LayerRecord, grids_of
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.annotate_layers import AnnotateLayers
from fqt_deploy.passes.append_optimizer import AppendOptimizer
from fqt_deploy.passes.binarize_forward import BinarizeForward
from fqt_deploy.passes.check_operators import CheckOperators
from fqt_deploy.passes.choose_bits import ChooseBits
from fqt_deploy.passes.choose_weight_bits import ChooseWeightBits
from fqt_deploy.passes.decompose_composites import DecomposeComposites
from fqt_deploy.passes.decompose_variance import DecomposeVariance
from fqt_deploy.passes.exchange_gradients import ExchangeGradients
from fqt_deploy.passes.exchange_kept_rows import ExchangeKeptRows
from fqt_deploy.passes.find_constant_codes import FindConstantCodes
from fqt_deploy.passes.fold_packing import FoldPacking
from fqt_deploy.passes.fold_padding import FoldPadding
from fqt_deploy.passes.insert_agp import InsertAGP
from fqt_deploy.passes.insert_scq import InsertSCQ
from fqt_deploy.passes.lower_to_1bit import LowerTo1Bit
from fqt_deploy.passes.normalize_layers import NormalizeLayers
from fqt_deploy.passes.normalize_products import NormalizeProducts
from fqt_deploy.passes.normalize_views import NormalizeViews
from fqt_deploy.passes.order_rows import OrderRows
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.project_weight_grad import ProjectWeightGrad
from fqt_deploy.passes.propagate_layout import PropagateLayout
from fqt_deploy.passes.recompute_cheap import RecomputeCheap
from fqt_deploy.passes.recompute_kept import RecomputeKept
from fqt_deploy.passes.rematerialize import Rematerialize
from fqt_deploy.passes.replace_dropout import ReplaceDropout
from fqt_deploy.passes.scale_weights import ScaleWeights
from fqt_deploy.passes.select_nested import SelectNested
from fqt_deploy.passes.select_once import SelectOnce
from fqt_deploy.passes.select_tokens import SelectTokens
from fqt_deploy.passes.separate_operands import SeparateOperands
from fqt_deploy.passes.show_nan import ShowNan
from fqt_deploy.passes.simplify_signs import SimplifySigns
from fqt_deploy.passes.sink_scatter import SinkScatter
from fqt_deploy.passes.split_weight_planes import SplitWeightPlanes
from fqt_deploy.passes.sum_kept_channels import SumKeptChannels
from fqt_deploy.passes.synchronize_batch_norm import SynchronizeBatchNorm
from fqt_deploy.passes.turn_weights import TurnWeights
from fqt_deploy.passes.write_state import WriteState

_NORMALIZE: tuple[Pass, ...] = (
    NormalizeViews(),
    NormalizeProducts(),
    NormalizeLayers(),
    DecomposeVariance(),
    PropagateLayout(),
    CheckOperators(),
)

_LOWER: tuple[Pass, ...] = (
    LowerTo1Bit(),
    SimplifySigns(),
    DecomposeComposites(),
    NormalizeViews(),  # again: lowering and decomposing insert reshapes
    SumKeptChannels(),
    ExchangeKeptRows(),
    FoldPacking(),
    SeparateOperands(),
    ShowNan(),
    WriteState(),
)


def training_passes(options: CompileOptions, grids: Mapping[str, ActivationGrid] | None = None) -> tuple[Pass, ...]:
    """From a captured training graph to one that code generation takes.

    Args:
        options: how to compile.
        grids: of activations, by the name of their layer's weight, as an earlier step of the same model has them; None
            where the example batch is to say.
    """
    bits, quantized = options.gradient_bits, options.recipe != "none"
    agp = options.agp or "any" if options.recipe == "scq+agp" else None
    return (
        # one spelling for everything
        *_NORMALIZE,
        # the whole step
        AnnotateLayers(options.include, options.exclude, options.frozen),
        TurnWeights(),
        *_choose_weight_bits(options),
        *([ScaleWeights()] if grids is None and _may_have_levels(options) else []),
        *([SynchronizeBatchNorm()] if options.batch_norm == "synchronized" else []),
        *([ExchangeGradients()] if options.distributed != "off" else []),
        AppendOptimizer(options.optimizer),
        ReplaceDropout(),
        # 1-bit training
        FoldPadding(),
        OrderRows(),
        *_choose_bits(options, grids),
        BinarizeForward(),
        *([FindConstantCodes()] if grids is None else []),  # a step beside the first one has the same layers
        *([SelectTokens(options.token_bits, required=agp == "tokens")] if agp in ("tokens", "any") else []),
        *([SelectNested(bits, required=agp == "nested")] if agp in ("nested", "any") else []),
        *([SelectOnce(bits, required=agp == "once")] if agp in ("once", "any") else []),
        *([ProjectWeightGrad()] if quantized and options.projection == "auto" else []),
        *([InsertSCQ(bits, options.resolved_grid, options.token_bits)] if quantized else []),
        *(
            [InsertAGP("topk" if agp == "topk" else "sampled"), SinkScatter()]
            if agp in ("tokens", "sampled", "topk", "any")
            else []
        ),
        # packed bits
        *_LOWER,
        # memory
        RecomputeCheap(),
        RecomputeKept(always=options.remat == "auto"),
        *([Rematerialize()] if options.remat == "auto" else []),
    )


def _choose_weight_bits(options: CompileOptions) -> tuple[Pass, ...]:
    most = max(options.weight_bits, *(each.weights for each in options.bits), 1)
    return (ChooseWeightBits(options.weight_bits, options.bits),) if most > 1 else ()


def _choose_bits(options: CompileOptions, grids: Mapping[str, ActivationGrid] | None) -> tuple[Pass, ...]:
    if grids is not None:
        return (ChooseBits(decided=tuple(grids.items())),) if grids else ()
    if not (_may_have_levels(options) or options.bits):  # whose globs are checked
        return ()
    return (ChooseBits(options.activation_bits, options.bits, fitted=options.activation_grid == "fitted"),)


def _may_have_levels(options: CompileOptions) -> bool:
    """Whether activations are not signs everywhere."""
    bits = (options.activation_bits, *(each.activations for each in options.bits))
    return max(bits) > 1 or options.activation_grid == "fitted"


def prediction_passes(layers: Sequence[LayerRecord]) -> tuple[Pass, ...]:
    """From a captured evaluation graph to one that code generation takes.

    Args:
        layers: what was decided for the training step.
    """
    binarized = [record for record in layers if record.binarized]
    turned = tuple(record.weight for record in binarized if record.turned)
    decided = AnnotateLayers(binarized=tuple(record.weight for record in binarized), turned=turned)
    grids = [ChooseBits(decided=tuple(found.items()))] if (found := grids_of(layers)) else []
    several = tuple((record.weight, record.weight_bits) for record in binarized if record.weight_bits > 1)
    weights = [ChooseWeightBits(decided=several)] if several else []
    return (*_NORMALIZE, decided, TurnWeights(), *weights, FoldPadding(), *grids, BinarizeForward(), *_LOWER)


def all_passes() -> tuple[Pass, ...]:
    """Every pass of every recipe, in pipeline order: a pass that runs twice has two places."""
    options = CompileOptions(weight_bits=2, activation_bits=2, distributed="fp32", batch_norm="synchronized")
    return (*training_passes(options), Rematerialize(), SplitWeightPlanes())

"""The verdict on a profile in words: what costs time, and what to change."""

from __future__ import annotations

from collections.abc import Iterator

from fqt_deploy.profiling.kernel_classes import REST
from fqt_deploy.profiling.rows import Row, class_rows, layer_rows
from fqt_deploy.profiling.step_profile import StepProfile

_DOMINATES = 0.3
"""Share of the step from which a class of kernels is worth a sentence."""
_OUTSIDE = 0.05
_FAR = 0.5
"""Share of the kernels' time beyond what the roofline asks for, from which the farthest rows are named."""
_NAMED = 3
_ADVICE = {
    "attention": "attention stays in fp32: shorter sequences or fewer heads save most",
    "fp32 products": "--check says why each layer in fp32 is not in 1 bit, --include takes more of them",
    "packing": "bits are packed for small products: larger batches, or --exclude for the smallest layers",
    "quantizing": "gradients are quantized for small products: larger batches, or --agp once for fewer samples",
    "normalization": "normalization reads activations in fp32: fewer or smaller of them save most",
    "selection": "rows are selected and gathered: --agp once selects once in a step",
    "optimizer": "updates move all parameters and moments once a step: larger batches or --accumulate spread that, "
    "SGD keeps fewer moments",
    REST: "activations are read and written in fp32 between the layers: fewer residuals and activations save most",
}


def verdict(profile: StepProfile) -> list[str]:
    """Sentences about the profile, what matters most first; at least one."""
    rows, classes = layer_rows(profile), class_rows(profile)
    said = [
        *_void(profile), *_against_torch(profile), *_losing(rows), *_dominating(classes), *_levels(profile, rows),
        *_bytes(classes), *_outside(profile), *_far_from_ceilings(profile, rows),
    ]  # fmt: skip
    return said or ["no class of kernels dominates, and every 1-bit layer that was compared pays"]


def _void(profile: StepProfile) -> Iterator[str]:
    if profile.doubts:
        yield "times are void, as the warning says: what follows may be wrong, measure again on a quiet machine"


def _against_torch(profile: StepProfile) -> Iterator[str]:
    if profile.torch.steps:
        mode, fastest = min(profile.torch.steps.items(), key=lambda item: item[1])
        ratio = fastest / profile.step_s
        told = f"{ratio:.1f} times as fast as" if ratio >= 1 else f"{1 / ratio:.1f} times as slow as"
        yield f"the step is {told} PyTorch's fastest here, {mode} with {1e3 * fastest:.1f} ms"


def _losing(rows: list[Row]) -> Iterator[str]:
    """The 1-bit layers whose products together take longer than PyTorch's in fp32."""
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for row in rows:
        if row.runs_as == "1-bit" and row.direction != "optimizer":
            ours[row.layer] = ours.get(row.layer, 0.0) + row.seconds
            theirs[row.layer] = theirs.get(row.layer, 0.0) + (row.torch_fp32_s or 0.0)
    if losing := [layer for layer, seconds in ours.items() if 0 < theirs[layer] < seconds]:
        flags = " ".join(f"--exclude '{layer}'" for layer in losing[:8])
        verb = "do" if len(losing) > 1 else "does"
        yield f"{', '.join(losing)} {verb} not pay in 1 bit: PyTorch's fp32 is faster there; try {flags}"


def _dominating(classes: list[Row]) -> Iterator[str]:
    for row in classes:
        if row.share >= _DOMINATES and row.layer in _ADVICE:
            verb = "take" if row.layer.endswith("s") else "takes"
            yield f"{row.layer} {verb} {100 * row.share:.0f} % of the step: {_ADVICE[row.layer]}"
    if classes and classes[0].layer == "1-bit products":
        yield f"1-bit products take most, {100 * classes[0].share:.0f} % of the step, as they should"


def _levels(profile: StepProfile, rows: list[Row]) -> Iterator[str]:
    """What activations of several bits cost in forward."""
    bits = {layer.activation_bits for layer in profile.layers if layer.decision == "1-bit"}
    forward = sum(row.share for row in rows if row.runs_as == "1-bit" and row.direction == "forward")
    if forward >= _DOMINATES and max(bits, default=1) > 1:
        told = " or ".join(str(n) for n in range(1, max(bits)) if n in (1, 2))
        yield (
            f"forward of the 1-bit layers takes {100 * forward:.0f} % of the step, on activations of {max(bits)} bits: "
            f"--activation-bits {told} is faster, and costs accuracy"
        )


def _far_from_ceilings(profile: StepProfile, rows: list[Row]) -> Iterator[str]:
    """The rows that lose most time against the machine's ceilings, where much is lost."""
    lost = {row: row.seconds - row.roofline_s for row in rows}
    whole = sum(max(0.0, seconds) for seconds in lost.values())
    if whole >= _FAR * profile.kernels_s:
        most = sorted(lost, key=lambda row: -lost[row])[:_NAMED]
        named = ", ".join(
            f"{row.layer} {row.direction} ({1e3 * row.seconds:.1f} ms, {100 * row.roofline_share:.0f} % of the ceiling)"
            for row in most
        )
        yield (
            f"{100 * whole / profile.kernels_s:.0f} % of the kernels' time is more than the ceilings ask for, "
            f"most in {named}: the kernels are slow there, or too small; --tune may find faster tiles"
        )


def _bytes(classes: list[Row]) -> Iterator[str]:
    total = sum(row.bytes for row in classes) or 1
    for row in classes:
        if row.layer == "optimizer" and row.bytes >= _DOMINATES * total and row.share < _DOMINATES:
            yield f"the optimizer moves {100 * row.bytes / total:.0f} % of the bytes: {_ADVICE['optimizer']}"


def _outside(profile: StepProfile) -> Iterator[str]:
    outside = 1 - profile.kernels_s / profile.step_s
    if outside > _OUTSIDE and not profile.doubts:
        yield (
            f"{100 * outside:.0f} % of the step is outside of kernels, for {len(profile.kernels)} calls: "
            "the kernels are too small, larger batches help"
        )
    if profile.loads:
        loading = sum(end - begin for begin, end in profile.loads) / len(profile.loads) / 1e9
        if loading > profile.step_s:
            yield (
                f"the loader takes {1e3 * loading:.1f} ms for a batch, longer than the step: "
                "keep the data as .npy files, or prepare them before"
            )

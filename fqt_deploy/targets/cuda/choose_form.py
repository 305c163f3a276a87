"""Which form of the 1-bit products an artifact uses."""

from __future__ import annotations

from fqt_deploy.targets.cuda.bit_form import BitForm
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.warp_forms import AndForm, Int8Form, XorForm
from fqt_deploy.targets.cuda.warpgroup_form import WarpgroupForm

FORMS: dict[str, BitForm] = {"and": AndForm(), "xor": XorForm(), "int8": Int8Form(), "wgmma": WarpgroupForm()}
"""Name, as in ``features.ARCHITECTURES`` and ``features.ALTERNATIVES`` -> form."""


def form_for(features: CudaFeatures, planes: int) -> BitForm | None:
    """The form that an artifact's architectures use for ``planes`` bit-planes; None if they have none for so many."""
    return next((FORMS[name] for name in features.bit_forms if planes in FORMS[name].tiles), None)

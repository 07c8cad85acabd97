"""The families that have a text of their own, by name. To add one: its file, and its line here."""

from klppo_compile.distributions import bernoulli, categorical, normal, tanh_normal
from klppo_compile.records import Family

_FAMILIES: tuple[Family, ...] = (
    normal.FAMILY,
    tanh_normal.FAMILY,
    categorical.FAMILY,
    bernoulli.FAMILY,
)

FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}

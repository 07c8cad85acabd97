"""Names as other tools write them: two of ours that become one there would lose a number."""

from collections.abc import Iterable

from klppo_compile.exit_codes import BadInputError


def keep_apart(
    form: str, names: Iterable[tuple[str, tuple[str, ...]]], fix: str = "Rename one in the file."
) -> None:
    """Refuse names that a format doesn't tell apart.

    Args:
        form: the format.
        names: each as the format writes it, and as we do.
        fix: what to do about it.

    Raises:
        BadInputError: two that differ are written alike.
    """
    taken: dict[str, tuple[str, ...]] = {}
    for theirs, ours in names:
        first = taken.setdefault(theirs, ours)
        if first != ours:
            both = " and ".join(repr(" · ".join(name)) for name in (first, ours))
            raise BadInputError(
                f"{form} must be able to tell names apart; {both} both become {theirs!r}, and one"
                f" would be lost. {fix}"
            )

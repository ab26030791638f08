"""What is to be said to the operator about one configuration: collected, then said at once."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from polytope_server.config.section import Place
from polytope_server.config.tree import Finding, Node, at, nearest
from polytope_server.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Findings:
    """Errors and warnings of one run, each with the line of the value it is about."""

    strict: bool
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    _unknown: list[Finding] = field(default_factory=list)

    def error(self, tree: Node, place: Place, text: str) -> None:
        """Something that must be put right; nothing if the value has an error already."""
        found = at(tree, place)
        if found is None or not found.is_faulty:
            self.errors.append(Finding(text, place, nearest(tree, place).source))

    def warn(self, tree: Node, place: Place, text: str) -> None:
        """Something that the operator should know."""
        self.warnings.append(Finding(text, place, nearest(tree, place).source))

    def unknown(self, tree: Node, place: Place, text: str) -> None:
        """A key that nobody reads."""
        if self.strict:
            self.error(tree, place, text)
            return
        self.warn(tree, place, text)
        self._unknown.append(self.warnings[-1])

    def raise_errors(self) -> None:
        """Raise all errors as one `ConfigurationError`, if there are any.

        Keys that nobody reads are told with them: a misspelt one may be why another is missing.
        """
        if self.errors:
            raise ConfigurationError("\n".join(_lines([*self.errors, *self._unknown])))

    def warning_lines(self) -> tuple[str, ...]:
        return tuple(_lines(self.warnings))


def _lines(findings: Iterable[Finding]) -> Iterable[str]:
    """Each once, also where several collections share the datasource that it is about."""
    lines: dict[tuple[object, ...], str] = {}
    for finding in findings:
        match finding.place:
            case ("collections", _, "datasources", int(), *below) if below:
                about: tuple[object, ...] = ("datasources", *below)
            case ("datasources", _, "match" | "defaults" | "patch" as part, *below):
                about = ("datasources", part, *below)
            case place:
                about = place
        lines.setdefault((finding.text, finding.source, about), str(finding))
    return lines.values()

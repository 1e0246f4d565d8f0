"""A contract of import-linter: modules that import nothing but what is named."""

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

__all__ = ["OnlyContract"]


class OnlyContract(Contract):
    """Modules of a package import each other, the standard library, and packages that are named.

    Configuration options:
        - package: its name. allowed: names of other packages.
    """

    type_name = "only"

    package = fields.ModuleField()
    allowed = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002
        own = self.package.name
        found = [
            (module, imported)
            for module in sorted({own, *graph.find_descendants(own)})
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if not self._may(imported)
        ]
        return ContractCheck(kept=not found, metadata={"found": found})

    def _may(self, imported: str) -> bool:
        package = imported.partition(".")[0]
        own = f"{imported}.".startswith(f"{self.package.name}.")
        return own or package in self.allowed or package in sys.stdlib_module_names

    def render_broken_contract(self, check: ContractCheck) -> None:
        for module, imported in check.metadata["found"]:
            output.print_error(f"{module} imports {imported}", bold=True)

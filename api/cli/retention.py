"""``precedent retention``: erases what the rules of the settings do not keep any longer."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from api.cli.accesses import note, record_before
from api.cli.erase import print_erased, told_on_the_way
from api.cli.options import (
    DataDirOption,
    JsonOption,
    ModelOption,
    parse_share,
    write_json,
)
from engine.errors import QueryError
from engine.settings import load_settings
from engine.tenants import DEFAULT_TENANT

__all__ = ["retention"]


def retention(
    apply: Annotated[
        bool, typer.Option("--apply/--dry-run", help="Erase it; else only say what would go.")
    ] = False,
    rule: Annotated[
        list[str] | None, typer.Option(help="Only this rule of the settings; may be repeated.")
    ] = None,
    at_most: Annotated[
        str,
        typer.Option(
            "--at-most", help="Erase nothing if a rule names more than this.", metavar="SHARE"
        ),
    ] = "20%",
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Erase what is older than the rules in `[retention]` of the settings say.

    Without --apply it only lists how many instances each rule names. If one names more than
    --at-most of what its tenant has (of its source), nothing is erased at all. Each rule that
    erases something gets a signed report, as of `precedent erase`, and a row in the audit log.
    Exits with 1 if something is left of what was to go.
    """
    from api.security.seen import Seen
    from indexer.archive import Archive
    from indexer.erasure.retention import apply_rule, check_share, due_by

    share = parse_share(at_most)
    settings = load_settings(data_dir=data_dir, model=model)
    for name in rule or ():
        if name not in settings.retention:
            known = ", ".join(sorted(settings.retention)) or "none"
            raise QueryError(f"there is no rule {name!r} in the settings; there are: {known}")
    rules = {name: one for name, one in settings.retention.items() if not rule or name in rule}
    if not rules:
        raise QueryError(
            "the settings have no rule of retention; add [retention.NAME] with study_years or "
            "indexed_days to precedent.toml"
        )
    now, console = datetime.now(UTC), Console(highlight=False, soft_wrap=True)
    complete = True
    with Archive(settings) as archive:
        found = [
            due_by(name, one, archive.of(one.tenant or DEFAULT_TENANT), now)
            for name, one in rules.items()
        ]
        if apply:
            for due in found:
                check_share(due, share)
        for due in found:
            if not apply:
                if as_json:
                    write_json({
                        "dry_run": True, "rule": due.rule, "tenant": due.tenant,
                        "instances": due.instances, "of": due.of,
                    })  # fmt: skip
                else:
                    console.print(
                        f"{due.rule}: would erase {due.instances:,} of {due.of:,} instances of "
                        f"tenant {due.tenant}"
                    )
                continue
            record_before(rule=due.rule)
            if not due.instances and not due.cut_short:
                note(Seen(results=0))
                if as_json:
                    write_json({"rule": due.rule, "tenant": due.tenant, "images": 0})
                else:
                    console.print(f"{due.rule}: nothing to erase")
                continue
            of_it = archive.of(due.tenant)
            erased = apply_rule(due.rule, rules[due.rule], of_it, now, told_on_the_way())
            note(Seen(results=int(erased.told["images"])), report=erased.told["id"])
            complete = complete and erased.is_complete
            if not as_json:
                console.print(f"{due.rule}:")
            print_erased(erased, as_json=as_json)
    return int(not complete)

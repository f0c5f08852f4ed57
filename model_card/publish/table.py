"""The plan as a table for people."""

from __future__ import annotations

from .plan import Plan


def plan_table(plan: Plan) -> str:
    """Returns what would change, file by file, and what of the remote's card stays."""
    wish, remote = plan.wish, plan.remote
    state = f"at {(remote.commit or 'no commit')[:12]}" if remote.exists else "is not there yet"
    seen = "private" if (wish.private if remote.private is None else remote.private) else "public"
    as_what = "as a pull request" if wish.pr else f"tag {wish.tag}"
    lines = [f"{wish.kind.name} {wish.repo} ({seen}, {state}) from {wish.folder}, {as_what}", ""]
    lines.append(f"{'':8}  {'size':>9}  {'sha256':12}  file")
    for row in plan.as_json()["files"]:
        digest = (row["sha256"] or "")[:12]
        lines.append(f"{row['change']:8}  {size_text(row['size']):>9}  {digest:12}  {_plain(row['path'])}")
    lines += [f"{'left out':8}  {'':9}  {'':12}  {_plain(path)} ({why})" for path, why in plan.left_out]
    lines.append("")
    files, deletes = plan.pending(remote)
    total = sum(file.size for file in files)
    lines.append(f"{len(files)} files ({size_text(total)}) to send, {len(deletes)} to delete")
    if plan.card.kept:
        lines.append(f"card: kept as it is on the Hub, because somebody wrote it there: {'; '.join(plan.card.kept)}")
    if plan.card.added:
        lines.append(f"card: only on the Hub, and kept: {'; '.join(plan.card.added)}")
    if plan.gaps:
        how = f"--yes REFUSES {len(plan.undeclared)} of them" if plan.undeclared else "published as it is"
        if plan.gaps and not plan.undeclared and not wish.incomplete_card:
            how += ", because the card says so itself"
        lines.append(f"card: INCOMPLETE, {len(plan.gaps)} things are missing or wrong; {how}:")
        lines += [f"  {gap}" for gap in plan.gaps]
    accepted = f", {len(plan.accepted)} findings accepted by --allow" if plan.accepted else ""
    lines.append(
        f"scan: {len(plan.files)} files, no secret, no local path, nothing from outside the release{accepted}"
    )
    return "\n".join(lines)


def size_text(size: int) -> str:
    """Shows bytes in units of 1000.

    >>> size_text(0), size_text(999), size_text(1_500_000)
    ('0 B', '999 B', '1.5 MB')
    """
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def _plain(path: str) -> str:
    """A file's name comes from a folder or the Hub: control characters are shown, not obeyed."""
    return path if path.isprintable() else ascii(path)

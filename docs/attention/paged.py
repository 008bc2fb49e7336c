"""Draw `paged.svg`: two forks of a sequence, their tables, and the pool after both have written one token more."""

from pathlib import Path

from twofold.spec.attention.paged import BlockPool

PAGE, BLOCKS = 4, 8


def main() -> None:
    pool = BlockPool(BLOCKS, PAGE)
    pool.create("other", 3)
    pool.create("a", 10)
    pool.fork("a", "b")
    pool.append("b")
    pool.append("a")
    colors = {"a": "--spec", "b": "--fast"}
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-size="13" fill="currentColor">']
    place = lambda block: (24 + 76 * block, 128)
    for row, name in enumerate("ab"):
        y = 24 if name == "a" else 252
        parts.append(f'<text x="24" y="{y + 17}">table of {name}</text>')
        for i, block in enumerate(pool.tables[name]):
            x = 176 + 60 * i
            frame = f'fill="none" stroke-width="2" style="stroke: var({colors[name]})"'
            parts.append(f'<rect x="{x}" y="{y}" width="44" height="26" rx="4" {frame}/>')
            parts.append(f'<text x="{x + 22}" y="{y + 18}" text-anchor="middle">{block}</text>')
            target = place(block)[0] + 32
            start, end = (y + 26, 124) if row == 0 else (y, 186)
            parts.append(f'<path d="M{x + 22} {start}L{target} {end}" stroke-width="1.5" style="stroke: var({colors[name]})"/>')
        parts.append(f'<text x="376" y="{y + 17}" font-size="12" fill-opacity="0.8">{pool.lengths[name]} tokens, {PAGE} to a block</text>')
    for block in range(BLOCKS):
        x, y = place(block)
        owners = [name for name, table in pool.tables.items() if block in table]
        used = max((min(PAGE, pool.lengths[name] - PAGE * pool.tables[name].index(block)) for name in owners), default=0)
        parts.append(f'<rect x="{x}" y="{y}" width="64" height="34" rx="3" fill="none" stroke="currentColor" stroke-opacity="0.7"/>')
        for slot in range(used):
            side = "" if len(owners) > 1 or owners[0] not in colors else f' style="fill: var({colors[owners[0]]})"'
            strength = 0.25 if owners == ["other"] else 0.6
            parts.append(f'<rect x="{x + 3 + 15 * slot}" y="{y + 4}" width="13" height="26"{side} fill-opacity="{strength}"/>')
        label = "null" if block == 0 else "free" if not owners else f"{pool.ref[block]} owner{'s' * (pool.ref[block] > 1)}"
        parts.append(f'<text x="{x + 32}" y="{y + 50}" text-anchor="middle" font-size="11" fill-opacity="0.8">{block}: {label}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()

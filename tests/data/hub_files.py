"""Local folders of the layout of a hub repository: configurations and splits as parquet files with their features."""

from collections.abc import Mapping
from pathlib import Path

import datasets


def write_hub(folder: Path, configs: Mapping[str, Mapping[str, datasets.Dataset]]) -> str:
    """Writes rows by configuration and split; the folder loads as a hub data set does."""
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        (folder / name).mkdir(parents=True)
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, rows in splits.items():
            rows.to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)

"""What is wrong in NNI's node manager, and the edits that mend it.

NNI 3.0 is archived, so nothing will be mended upstream. Each repair names one file, the digest of the text it was
written for and its edits; ``elm_nni.compat.manager`` applies them to a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from elm_nni.compat.known_files import KnownFile
from elm_nni.compat.manager_edits import EDITS, Edit
from elm_nni.errors import UserError


@dataclass(frozen=True)
class ManagerRepair:
    """Edits of one JavaScript file of the node manager.

    Attributes:
        name: short name, the same for all files that mend one thing.
        known: the file and the digest of the text that the edits are for.
        edits: (old, new) pairs; each old text stands exactly once in the file.

    Example:
        >>> repaired = MANAGER_REPAIRS[0].apply(MANAGER_REPAIRS[0].known.path.read_text())
    """

    name: str
    known: KnownFile
    edits: tuple[Edit, ...]

    def apply(self, text: str) -> str:
        """The text with all edits.

        Raises:
            UserError: an edit does not fit exactly once.
        """
        for old, new in self.edits:
            if text.count(old) != 1:
                raise UserError(f"the repair {self.name!r} fits {text.count(old)} places of {self.known.file}, not one")
            text = text.replace(old, new)
        return text


SHA256 = {
    "nni_node/common/restServer.js": "f03aa41fcffbd31761c247697511d10c2b290a297d8ab3f4791c75a611b349e3",
    "nni_node/common/trial_keeper/process.js": "237adf5ffcab8f7621116edbfa10c74a5ed87b113251532f59c5dfffc48c9290",
    "nni_node/core/nnimanager.js": "4f45d543c1f6c65a9712e947e0ebcefb364a354fa07045a961ec5e4f1ba11971",
    "nni_node/core/tuner_command_channel.js": "ab66be789261f31b26e7fb9605936c4bce6d23c9593dce0bbe556458f27da6b3",
    "nni_node/extensions/nniTensorboardManager.js": "8e92f555dd03eee93fd05e2b49045cabb017d368229e0da7f80b609e1f70b782",
    "nni_node/main.js": "60111370885579dafbf6576781915d318eb50fe1c22b363c054bbba332e977f2",
    "nni_node/rest_server/index.js": "91ee1863512e18ed8c92de6ff9d9b6c62eb9c2d80d4eac452852491d15a34b91",
    "nni_node/training_service/remote_v3/ssh.js": "82a3d6e081d97642a3d31dd8a4550187a22fdf37edfed145431ac1a6951c58d3",
    "nni_node/training_service/remote_v3/worker.js": (
        "f45b7db4524a85e5ed02c77c659fe9b784c2059f38bffc77600105d93ebba724"
    ),
    "nni_node/training_service/reusable/channels/webCommandChannel.js": (
        "ccd7febf7cb36e0cd2dfb13e75dbabfd34b5aa3e4d38f53b617332505a2c1358"
    ),
    "nni_node/training_service/v3/compat.js": "9334774e798bd14efc5ccc0c78eef8d5fd14f91ead38ab71e9f468cdf9c05e99",
}

MANAGER_REPAIRS = tuple(
    ManagerRepair(name, KnownFile(file, SHA256[file]), edits)
    for name, files in EDITS.items()
    for file, edits in files.items()
)

"""Print the include directory of the installed torch, without importing it; nothing if none is.

pip's build isolation hides the installed packages from find_spec, but the interpreter is still the
target environment's: its paths lead to the torch that the package will run with.
"""

import importlib.util
import site
import sysconfig
from pathlib import Path

places = [Path(sysconfig.get_path("platlib")) / "torch", Path(site.getusersitepackages()) / "torch"]
spec = importlib.util.find_spec("torch")
if spec is not None and spec.origin is not None:
    places.insert(0, Path(spec.origin).parent)

for place in places:
    if (place / "include" / "torch").is_dir():
        print((place / "include").as_posix())
        break

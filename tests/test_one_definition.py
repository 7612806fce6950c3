"""No two rooms define a C++ name that the linker sees: it would keep one of the two for both, without a word."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
ROOMS = sorted(folder for folder in CSRC.iterdir() if folder.is_dir()) if CSRC.exists() else []

NOT_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|^[ \t]*\#(?:\\\n|[^\n])*""", re.DOTALL | re.MULTILINE
)
NAMESPACE = re.compile(r"(?:inline )?namespace ?([\w:]*)$")
TYPE = re.compile(r"(?:enum class|enum|struct|class|union) (?:alignas\([^)]*\) ?)?(\w+)")
FUNCTION = re.compile(r"([\w~]+) ?\(")
TEMPLATE = re.compile(r"^template ?<(?:[^<>]|<(?:[^<>]|<[^<>]*>)*>)*> ?")
ATTRIBUTES = re.compile(
    r"__\w+__ ?\(\((?:[^()]|\([^()]*\))*\)\) ?|__launch_bounds__ ?\([^()]*\) ?|alignas ?\([^()]*\) ?"
)


def defined_in(code: str, namespace: str = "") -> set[str]:
    """What the linker sees of types and of functions with a body, with their namespaces: not what is in one of them."""
    code = NOT_CODE.sub(" ", code)
    found, scopes, start = set(), [namespace] if namespace else [], 0
    for match in re.finditer(r"[{};]", code):
        head = " ".join(code[start : match.start()].split())
        start = match.end()
        if match[0] == "}" and scopes:
            scopes.pop()
        if match[0] != "{":
            continue
        inside = NAMESPACE.fullmatch(head)
        if not inside and None not in scopes and (name := _name_of(head)):
            found.add("::".join([*scopes, name]))
        scopes.append(inside[1] or None if inside else None)  # None: nothing in it is visible
    return found


def _name_of(head: str) -> str:
    """What a definition that begins so defines, or '': a specialisation, or something of this file alone."""
    while TEMPLATE.match(head):
        if head.startswith("template <>"):
            return ""
        head = TEMPLATE.sub("", head, count=1)
    head = ATTRIBUTES.sub("", head)
    if re.match(r"(?:\w+ )*static ", head):
        return ""
    found = TYPE.match(head) or FUNCTION.search(head.split("=")[0])
    return found[1] if found else ""


def definitions(room: Path) -> dict[str, str]:
    """Name -> the file that defines it."""
    sources = sorted(path for path in room.iterdir() if path.suffix in (".h", ".cpp", ".cu"))
    texts = {path: path.read_text() for path in sources}
    per_isa = {name for text in texts.values() for name in re.findall(r'define TOCO_PER_ISA "[\w/]*/([\w.]+)"', text)}
    found = {}
    for path, text in texts.items():
        for name in defined_in(text, "toco::portable" if path.name in per_isa else ""):
            found[name] = f"{room.name}/{path.name}"
    return found


@pytest.mark.skipif(not ROOMS, reason="an installed package has no sources")
def test_no_name_is_defined_in_two_rooms():
    owners = defaultdict(list)
    for room in ROOMS:
        for name, file in definitions(room).items():
            owners[name].append(file)
    assert len(owners) > 100  # the scan reads something
    shared = {name: files for name, files in owners.items() if len(files) > 1}
    assert not shared, shared


def test_what_the_linker_sees():
    code = """
    #define BROKEN {
    namespace toco {
    struct Tokens { int count; int size() const { return count; } };
    template <typename T, typename A = Accumulate<T>>
    A sum_of(const T* x) { if (x) { return {}; } return A("{"); }
    static int mine() { return 1; }
    struct Later;
    int declared(int x);
    template <> int sum_of<int>(const int* x) { return 2; }
    enum class Kind { kOne };
    namespace { int hidden() { return 3; } struct Hidden {}; }
    namespace inner { __attribute__((always_inline)) inline int near() { return 4; } }
    }  // namespace toco {
    """
    assert defined_in(code) == {"toco::Tokens", "toco::sum_of", "toco::Kind", "toco::inner::near"}
    assert defined_in("int rows() { return 1; }", "toco::portable") == {"toco::portable::rows"}

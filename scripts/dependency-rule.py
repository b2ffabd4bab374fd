#!/usr/bin/env python3
"""Proves the dependency rule of docs/ARCHITECTURE.md from `cargo metadata --no-deps` on standard input.

shell -> pure -> domain; never up, never sideways. Pure crates get no crate that does I/O, keeps time, makes randomness
or brings a runtime. Unsafe code is allowed only where it is named here. Exits 1 and names every breach.
"""
import json
import pathlib
import sys

P = "keyhole-"
# What each member may use of the workspace (development dependencies included).
ALLOWED = {
    "domain": set(),
    "secmem": set(),
    "proto": set(),
    "wire": {"domain", "secmem"},
    "state": {"domain"},
    "view": {"domain"},
    "manager": {"domain", "proto", "secmem", "state", "wire"},
    "node-fs": {"domain", "proto", "secmem", "view", "wire"},
    "cli": {"domain", "proto", "secmem", "wire", "manager", "node-fs"},
    "decoders": {"domain", "proto", "secmem", "wire", "state", "view", "manager", "node-fs"},
    "sim": {"domain", "proto", "secmem", "wire", "state", "manager"},
    "tests": {"domain", "proto", "secmem", "wire", "state", "view", "manager", "node-fs"},
}
# What pure crates may use of the world, outside tests.
PURE = {"domain": {"thiserror"}, "state": {"thiserror"}, "view": {"sha2", "thiserror"}}
# Members that may override the workspace's ban on unsafe code.
UNSAFE = {"secmem", "node-fs", "sim", "tests"}

breaches = []
members = json.load(sys.stdin)["packages"]
for member in members:
    name = member["name"].removeprefix(P)
    if name not in ALLOWED:
        breaches.append(f"{member['name']}: not a member that the rule knows")
        continue
    for dependency in member["dependencies"]:
        other = dependency["name"]
        if other.startswith(P):
            if other.removeprefix(P) not in ALLOWED[name]:
                breaches.append(f"{member['name']} must not depend on {other}")
        elif name in PURE and dependency["kind"] != "dev" and other not in PURE[name]:
            breaches.append(f"{member['name']} is pure and must not depend on {other}")
    root = pathlib.Path(member["manifest_path"]).parent
    if name not in UNSAFE:
        lints = (root / "Cargo.toml").read_text()
        if "[lints]\nworkspace = true" not in lints:
            breaches.append(f"{member['name']} must take its lints from the workspace (unsafe_code is forbidden there)")
    if name in PURE:
        for source in (root / "src").rglob("*.rs"):
            for number, line in enumerate(source.read_text().splitlines(), 1):
                for word in ("std::fs", "std::net", "Instant", "std::thread", "std::process", "std::env", "SystemTime"):
                    if word in line.split("//")[0]:
                        breaches.append(f"{source.relative_to(root.parent)}:{number}: pure code must not use {word}")

missing = set(ALLOWED) - {member["name"].removeprefix(P) for member in members}
breaches += [f"{P}{name}: missing from the workspace" for name in sorted(missing)]
for breach in breaches:
    print(f"dependency rule: {breach}", file=sys.stderr)
sys.exit(1 if breaches else 0)

"""What may stand on the command line of ``sslmed site``, ``server`` and ``app``. Standard library only."""

import argparse
from pathlib import Path

from sslmed_dist.cli_arguments import Verbs, configuration, overriding, path, recipe


def hospital_site(verbs: Verbs) -> None:
    """``site`` and its actions."""
    site = verbs.add_parser("site", help="a hospital's own side: its rules, its door, its ledger of what left")
    actions = site.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text)
        parser.add_argument("file", type=path, metavar="SITE.YAML", help="the site's own file")
        return parser

    init = action("init", "write the site's file, strict and explained line by line, and make its keys")
    init.add_argument("--name", required=True, help="of the site: letters, digits, '_', '.', '-'")
    init.add_argument("--data", type=path, required=True, metavar="PATH", help="where the site's images are")
    init.add_argument("--server", metavar="HOST:PORT", help="that this site will connect to")
    init.add_argument("--root-certificate", type=path, metavar="CA.CRT", help="of the server's authority")
    init.add_argument("--user", help="whose the data side is; root alone can give it away (default: who runs this)")
    init.add_argument("--network-user", metavar="USER", help="whose the network side is (default: the same user)")
    network = actions.add_parser("network", help="the network side: connect to the server and stay until SIGTERM")
    network.add_argument("file", type=path, metavar="NETWORK.YAML", help="its own file, network/network.yaml")
    check = action("check", "prove what can be proved: file, key, ledger, the separation of the two sides")
    check.add_argument("--against", type=recipe, metavar="CONFIG", help="instead: what the rules say to a recipe")
    overriding(check, "keys of that recipe")
    accept = action("accept", "show the runs that wait, or accept one")
    accept.add_argument("digest", nargs="?", metavar="DIGEST", help="of the run; without it those that wait are shown")
    action("start", "the data side: open the door and answer until SIGTERM")
    action("status", "what was sent and spent, what waits, the newest entry of the ledger")
    action("reset", "let the data set's life of rounds, messages and bytes begin anew; it stands in the ledger")
    ledger = action("ledger", "verify the ledger, show or export it")
    ledger.add_argument("what", choices=("verify", "show", "export"), help="what to do with it")
    ledger.add_argument("--head", metavar="NUMBER:DIGEST", help="an entry that somebody else kept, as the server does")
    ledger.add_argument("--out", type=path, metavar="FILE", help="of an export: .csv, or .md for one page")


def federation_server(verbs: Verbs) -> None:
    """``server`` and its actions."""
    server = verbs.add_parser("server", help="the server of a federation: certificates, sites, runs")
    actions = server.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text)
        parser.add_argument("folder", type=path, metavar="DIR", help="the server's own folder")
        return parser

    init = action("init", "make a certificate authority, a certificate and server.yaml")
    init.add_argument("--host", nargs="+", required=True, help="DNS names or addresses that sites connect to")
    init.add_argument("--port", type=int, default=8443, help="the one port")
    init.add_argument("--listen", choices=("0.0.0.0", "127.0.0.1"), default="0.0.0.0", help="127.0.0.1: behind a proxy")
    action("renew", "make another certificate of the same authority")
    site = action("add-site", "register a site: the keys of its two sides and the most images that it may count")
    site.add_argument("name", metavar="NAME", help="of the site")
    site.add_argument("--node-key", required=True, metavar="WORD", help="public key of its network side")
    site.add_argument("--data-key", required=True, metavar="HEX", help="public key of its data side")
    site.add_argument("--samples", type=int, required=True, metavar="N", help="the most images that it may count")
    action("start", "the server, in the foreground until SIGTERM")
    configuration(action("run", "a new federation on the running server"))
    resume = action("resume", "go on with a run where it stopped")
    resume.add_argument("name", metavar="RUN", help="run.name")
    action("status", "sites and their keys, certificates, clock, runs")


def flower_app(verbs: Verbs) -> None:
    """``app`` and its actions."""
    app = verbs.add_parser("app", help="the Flower app that came with this program, and signatures of it")
    actions = app.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("digest", help="its SHA-256 as Flower packs it; the same for every installation of a version")
    key = actions.add_parser("key", help="make the key that signs apps; on a machine without a network")
    key.add_argument("key", type=path, metavar="KEY", help="file of the key, not there yet")
    sign = actions.add_parser("sign", help="sign the app")
    sign.add_argument("key", type=path, metavar="KEY", help="file of the key")
    sign.add_argument("--digest", metavar="SHA256", help="of the app; default: the one that came with this program")
    sign.add_argument("--out", type=path, default=Path("app.signature.json"), help="default: app.signature.json")
    check = actions.add_parser("check", help="whether a signature is of the app that came with this program")
    check.add_argument("signature", type=path, metavar="SIGNATURE", help="file of `sslmed app sign`")
    trust = actions.add_parser("trust", help="write the file of keys whose apps a site's node runs")
    trust.add_argument("keys", nargs="+", metavar="PUBLIC", help="public halves, 64 hexadecimal digits each")
    trust.add_argument("--out", type=path, default=Path("trusted.yaml"), help="default: trusted.yaml")

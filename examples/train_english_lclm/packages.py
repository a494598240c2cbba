"""The Debian packages that English is read from, and where it stands in each."""

from __future__ import annotations

from dataclasses import dataclass

from readers import (
    Reader,
    read_dictionary,
    read_docbook,
    read_game,
    read_html,
    read_monsters,
    read_novels,
    read_scripture,
)

__all__ = ["PACKAGES", "Package"]


@dataclass(frozen=True)
class Package:
    """A Debian package with English text.

    Attributes:
        name: The package.
        files: A pattern of the files that are read, below its root.
        read: File → paragraphs.
        held_out: Whether it is kept for evaluation, as a whole.
    """

    name: str
    files: str
    read: Reader
    held_out: bool = False


PACKAGES = (
    Package("python3.11-doc", "usr/share/doc/python3.11/html/**/*.html", read_html),
    Package("git-doc", "usr/share/doc/git-doc/**/*.html", read_html),
    Package("libreoffice-help-en-us", "**/en-US/**/*.html", read_html),
    Package("debian-handbook", "**/en-US/*.html", read_html),
    Package("installation-guide-amd64", "**/en/*.html", read_html),
    Package("gimp-help-en", "usr/share/gimp/2.0/help/en/*.html", read_html),
    Package("gnucash-docs", "usr/share/doc/gnucash-docs/gnucash-*-en/*.html", read_html),
    Package("anarchism", "usr/share/doc/anarchism/html/*.html", read_html),
    Package("debian-history", "**/*.en.html", read_html),
    Package("kstars-data", "usr/share/doc/HTML/en/kstars/*.docbook", read_docbook),
    Package("skrooge-common", "usr/share/doc/HTML/en/skrooge/*.docbook", read_docbook),
    Package("dict-foldoc", "usr/share/dictd/*.dict.dz", read_dictionary),
    Package("dict-jargon", "usr/share/dictd/*.dict.dz", read_dictionary),
    Package("sword-text-web", "**/*.bzs", read_scripture),
    Package("sword-comm-mhcc", "**/*.bzs", read_scripture),
    Package("r-cran-janeaustenr", "**/data/Rdata.rdb", read_novels),
    Package("crawl-common", "usr/share/crawl/dat/descript/*.txt", read_monsters),
    # A manual, a reference, essays, rules of card games, satire, accounts at home, a fantasy story.
    Package("gnome-user-docs", "usr/share/help/C/**/*.page", read_html, True),
    Package("debian-reference-en", "**/ch*.en.html", read_html, True),
    Package("cfi-en", "usr/share/doc/cfi-en/html/*.htm", read_html, True),
    Package("kpat", "usr/share/doc/HTML/en/kpat/*.docbook", read_docbook, True),
    Package("dict-devil", "usr/share/dictd/*.dict.dz", read_dictionary, True),
    Package("homebank-data", "usr/share/doc/homebank-data/help/*.html", read_html, True),
    Package("wesnoth-1.16-httt", "**/*.cfg", read_game, True),
)
"""Those for training, and then those that are held out. Paragraphs of the first are not held out again."""

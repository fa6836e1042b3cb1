#!/usr/bin/env bash
# Puts the archives of packaging/archive.sh and their checksums onto GitHub's page of a tag.
#
#     packaging/publish-release.sh TAG
set -euo pipefail
cd "$(dirname "$0")/../${CARGO_TARGET_DIR:-target}/dist"

cat mcprelay-*.tar.gz.sha256 >SHA256SUMS
sha256sum --check SHA256SUMS
gh release create "${1:?the tag}" --verify-tag --title "$1" --notes "See CHANGELOG.md." mcprelay-*.tar.gz SHA256SUMS

# shellcheck shell=bash
# Finds or installs a headless Chromium for the test that clicks through a report. test.sh sources this file after _env.sh.
#
# On return FLEXICLIP_BROWSER is its path: the one that the caller has set, one on PATH, Debian's package (as root; it downloads
# 80 MB in half a minute), or else the build that playwright downloads.

find_browser() {
  local name
  for name in chromium-headless-shell chromium google-chrome; do
    command -v "$name" && return
  done
  "$VENV/bin/python" -c 'import os, playwright.sync_api as p
with p.sync_playwright() as run: path = run.chromium.executable_path
print(path if os.path.exists(path) else "")' | grep .
}

install_browser() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update && apt-get install -y --no-install-recommends chromium-headless-shell fonts-dejavu-core && return
  fi
  "$VENV/bin/python" -m playwright install --only-shell chromium
}

if [ -z "${FLEXICLIP_BROWSER:-}" ] && ! FLEXICLIP_BROWSER=$(find_browser); then
  say "headless Chromium: installing it (log: $LOG)"
  install_browser >>"$LOG" 2>&1 || stop "no Chromium could be installed: name one with FLEXICLIP_BROWSER=/path (log: $LOG)"
  FLEXICLIP_BROWSER=$(find_browser) || stop "no Chromium was found after installing it: name one with FLEXICLIP_BROWSER=/path"
fi
export FLEXICLIP_BROWSER
say "browser: $FLEXICLIP_BROWSER"

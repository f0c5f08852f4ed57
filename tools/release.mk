# make release VERSION=x.y.z: the version everywhere, the changelog dated; no commit, no push.
# make release-check: builds the three folders that would be published from demo data, checks each, says what is left to do.
VERSION ?=

.PHONY: release release-check
release:
	@test -n "$(VERSION)" || { echo "make release VERSION=x.y.z" >&2; exit 2; }
	$(PYTHON) tools/release.py "$(VERSION)"

release-check: $(VENV)/test.done
	$(BIN)/python tools/release_check.py --out build/release-check

# Everything is one command on a fresh Debian 12 with git, make, Go and gcc, as root: what is missing is installed.
# Kernels and test images are built once and kept by their content in ${XDG_CACHE_HOME:-~/.cache}/supermachine.

SHELL      := /bin/bash -euo pipefail
ARCH       := amd64
BUILD      := build
SHARE      := $(BUILD)/share/supermachine
CLI        := $(BUILD)/bin/supermachine
KERNEL     := $(SHARE)/vmlinux-$(ARCH)
INITRAMFS  := $(SHARE)/initramfs-$(ARCH).cpio
GOBUILD    := CGO_ENABLED=0 go build -trimpath -ldflags '-s -w'
TESTBED    := testbed/run
VM_MEMORY  := 8192
# Packages whose tests need real guests.
VM_PACKAGES := core core/machine kvm cmd/supermachine
FUZZTIME   := 30s
LIB        := $(BUILD)/lib/libsupermachine.so.1
PREFIX     := /usr/local

export SUPERMACHINE_ASSETS := $(CURDIR)/$(SHARE)

say = @printf '\n== %s\n' "$(1)" >&2

.PHONY: help all build lib abi install packages kernel images testbed demo check lint test test-native test-vm soak storm bench fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

all: build kernel ## build the command line, the guest's initramfs and its kernel

build: ## build the command line and the guest's initramfs (seconds)
	$(call say,build the command line and the guest)
	@mkdir -p $(BUILD)/bin $(SHARE)
	$(GOBUILD) -o $(CLI) ./cmd/supermachine
	$(GOBUILD) -o $(BUILD)/guest/init ./guest/init
	go run ./guest/initramfs/pack $(BUILD)/guest/init > $(INITRAMFS).new
	mv $(INITRAMFS).new $(INITRAMFS)

lib: ## build libsupermachine (a minute)
	$(call say,libsupermachine)
	@mkdir -p $(BUILD)/lib
	CGO_ENABLED=1 go build -trimpath -buildmode=c-shared -o $(LIB) -ldflags "-s -w -extldflags '-Wl,-soname,$(notdir $(LIB)) \
		-Wl,--version-script=$(CURDIR)/capi/libsupermachine.map'" ./capi
	@rm $(LIB:.so.1=.so.h) && ln -sf $(notdir $(LIB)) $(BUILD)/lib/libsupermachine.so

abi: ## write what is made from the table of the library's calls
	go run ./capi/abigen

install: all lib ## install the command line, the library and the guest: PREFIX=/usr/local DESTDIR=
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(CLI)
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/supermachine $(KERNEL) $(INITRAMFS)
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/lib $(LIB)
	ln -sf $(notdir $(LIB)) $(DESTDIR)$(PREFIX)/lib/libsupermachine.so
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/include include/supermachine.h
	install -d $(DESTDIR)$(PREFIX)/lib/pkgconfig
	sed 's,@PREFIX@,$(PREFIX),' capi/supermachine.pc.in > $(DESTDIR)$(PREFIX)/lib/pkgconfig/supermachine.pc

packages: all lib ## build and try the packages with all that they need: dist/
	$(call say,packages)
	bindings/python/build-package
	bindings/node/build-package
	bindings/ruby/build-package

kernel: ## build the guest's kernel (minutes, once)
	$(call say,guest kernel)
	@mkdir -p $(SHARE)
	@kernel=$$(guest/kernel/build guest guest/kernel/common.config guest/kernel/$(ARCH).config | tail -n 1) && \
		{ cmp -s "$$kernel" $(KERNEL) || { cp "$$kernel" $(KERNEL).new && mv $(KERNEL).new $(KERNEL); }; }

images: ## make the two images that demo and tests use (a minute, once)
	$(call say,images)
	@images/build > $(BUILD)/images.log && tail -n 1 $(BUILD)/images.log > $(BUILD)/images.dir || { cat $(BUILD)/images.log; exit 1; }

testbed: ## make sure that VMs can run here, in an emulated host if need be
	$(call say,testbed)
	@$(TESTBED) --time-limit 120 -- true

demo: all images testbed ## pull, convert, boot, exec, HTTP, redis, stop: on a real image from a real registry
	$(call say,demo)
	@$(TESTBED) --mem $(VM_MEMORY) --time-limit 600 --again 1 -- examples/demo.sh

check: lint ## the quick loop: formatting, vet and short tests (under a minute)
	go test -short ./...

lint:
	$(call say,formatting and vet)
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [[ -z "$$unformatted" ]] || { echo "gofmt: $$unformatted"; exit 1; }
	go vet ./...
	GOARCH=arm64 go vet ./guest/... ./core/agent/...

test: all images testbed lint test-native packages test-vm ## every test, those that need guests in the testbed where there is no KVM

test-native: lib
	$(call say,tests on this machine)
	go test -race -timeout 15m ./...
	scripts/test-reflink
	scripts/install-packages g++
	capi/ctest/run
	for language in python node ruby; do bindings/$$language/run-tests; done
	guest/kernel/check-arm64

test-vm: build
	$(call say,tests with real guests)
	@mkdir -p $(BUILD)/test
	for p in $(VM_PACKAGES); do go test -c -o $(BUILD)/test/$${p//\//-}.test ./$$p; done
	@scripts/stress-ng > /dev/null
	SUPERMACHINE_REQUIRE_KVM=1 scripts/test-vm 6 $(VM_PACKAGES)
	scripts/side-by-side 2 capi/ctest/run-guests examples/run-tests \
		'bindings/python/run-tests guests' 'bindings/node/run-tests guests' 'bindings/ruby/run-tests guests' \
		'bindings/python/run-tests conformance' 'bindings/node/run-tests conformance' 'bindings/ruby/run-tests conformance'

soak: all images testbed build ## the tests with real guests that take minutes, and others longer (an hour)
	@mkdir -p $(BUILD)/test
	go test -c -o $(BUILD)/test/core.test ./core
	SUPERMACHINE_SOAK=1 SUPERMACHINE_REQUIRE_KVM=1 TEST_VM_LIMIT=7200 scripts/test-vm 2 core

storm: all images testbed lib ## ten minutes of signals, children and threads beside busy VMs, for each language
	SUPERMACHINE_STORM=600 capi/ctest/run-guests storm
	SUPERMACHINE_STORM=600 bindings/python/run-tests guests -k storm
	SUPERMACHINE_STORM=600 bindings/node/run-tests guests --test-name-pattern=storm
	SUPERMACHINE_STORM=600 bindings/ruby/run-tests guests -n /storm/

bench: all lib images testbed ## measure, with the floors in the same run: build/bench.json
	bench/run

fuzz: ## run every fuzz target for FUZZTIME
	scripts/fuzz $(FUZZTIME)

clean: ## remove build/; the cache stays
	rm -rf $(BUILD)

# Thin over cargo. `make demo` and `make test` do all their own set-up on a machine that has
# Rust, git and make; what they install from Debian needs root, as the namespaces do.

SHELL      := /bin/bash
CARGO      ?= cargo
HOST       := $(shell rustc -vV | sed -n 's/^host: //p')
DIST       := target/dist
DESTDIR    ?=
CNI_BIN_DIR ?= /opt/cni/bin
PREFIX     ?= /usr/local

# The executables have no dynamic loader; `--target` keeps build scripts and macros out of that.
# Separate calls, so that one executable's features never enter another's build.
STATIC     := RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --locked --profile dist --target $(HOST)
BUILT      := target/$(HOST)/dist

.PHONY: build demo test test-clients bench lint tools install packages clean

build:
	$(STATIC) -p cni-hostgw
	$(STATIC) -p subnet-env --features cli
	mkdir -p $(DIST)
	for exe in cni-hostgw subnet-env; do \
	  ln -f $(BUILT)/$$exe $(DIST)/.$$exe && mv $(DIST)/.$$exe $(DIST)/$$exe; done

// flanneld, which cannot be built from here: its sources are copied and built on their own, because
// one of the modules that they want is not to be had.
module flannel

go 1.26.0

require github.com/flannel-io/flannel v0.28.10

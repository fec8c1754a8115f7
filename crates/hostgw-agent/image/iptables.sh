# Installs Debian's legacy iptables, with what it needs to run, in the folder $1. mmdebstrap takes the
# packages from where this machine gets its own. No shell, no package manager.
set -ef
rm -rf "$1"
keep='/usr/sbin/xtables-*-multi /usr/sbin/ip*tables-legacy* /usr/sbin/ip*tables-nft* /usr/lib/*/xtables/*
  /lib64/* /lib/ld-linux* /lib/*/ld-linux* /lib/*/libc.so.* /lib/*/libm.so.*
  /usr/lib/*/libip[46]tc.so.* /usr/lib/*/libxtables.so.* /usr/lib/*/libmnl.so.* /usr/lib/*/libnftnl.so.*
  /usr/lib/*/libnetfilter_conntrack.so.* /usr/lib/*/libnfnetlink.so.*
  /etc/protocols /etc/services /etc/ethertypes /usr/share/doc/*/copyright'
folder=$1
set -- --dpkgopt='path-exclude=/*'
for path in $keep; do set -- "$@" --dpkgopt="path-include=$path"; done
set +f
apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u |
  mmdebstrap --quiet --mode=root --format=directory --variant=extract --include=iptables "$@" \
    "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$folder" -
# The package's scripts, which link the plain names, do not run. The agent uses these names if the
# kernel has no nf_tables.
for program in iptables ip6tables; do
  for what in '' -save -restore; do ln -s $program-legacy$what "$folder/usr/sbin/$program$what"; done
done
# Removes files of mmdebstrap that describe the build machine.
for path in "$folder"/* "$folder"/etc/*; do
  case ${path#"$folder"/} in
    lib | lib64 | usr | etc | etc/protocols | etc/services | etc/ethertypes) ;;
    *) rm -rf "$path" ;;
  esac
done

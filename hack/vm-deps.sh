#!/usr/bin/env bash
# Installs what hack/vm.sh needs: an emulator and its tools from Debian, and
# Debian's kernel, which is only unpacked into a cache directory and never
# installed on this machine. Does nothing when all is there.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
cache=${CFS_VM_CACHE:-${XDG_CACHE_HOME:-${HOME:?vm-deps: HOME is not set: set CFS_VM_CACHE}/.cache}/claudefs/vm}

# command : Debian package
needs=(
  qemu-system-x86_64:qemu-system-x86
  busybox:busybox-static
  cpio:cpio
  modprobe:kmod
  mkfs.ext4:e2fsprogs
  xz:xz-utils
)
missing=()
for need in "${needs[@]}"; do
  command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
kernel=
for dir in "$cache"/linux-image-*/; do
  [[ -e $dir/ready ]] && kernel=$dir
done
((${#missing[@]})) || [[ -z $kernel ]] || exit 0

command -v apt-get >/dev/null || { echo "vm-deps: no apt-get here: install what it is for yourself (${missing[*]:-no command is missing}), and unpack a linux-image package of Debian into $cache" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
((EUID)) || apt-get update -qq # else what it names may be gone
if ((${#missing[@]})); then
  ((EUID == 0)) || { echo "vm-deps: run as root, or install these yourself: ${missing[*]}" >&2; exit 1; }
  echo "vm-deps: installing ${missing[*]}"
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
[[ -z $kernel ]] || exit 0

# The metapackage names the kernel that the distribution would boot.
package=$(apt-cache depends --important linux-image-amd64 | sed -nE 's/^ *Depends: (linux-image-[0-9].*)$/\1/p' | head -n 1)
[[ -n $package ]] || { echo "vm-deps: apt knows no linux-image-amd64: run apt-get update" >&2; exit 1; }
mkdir -p "$cache"
work=$(mktemp -d "$cache/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "vm-deps: unpacking $package into $cache"
(cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$package")
mkdir "$work/tree"
dpkg-deb -x "$work"/*.deb "$work/tree"
version=${package#linux-image-}
mods=$work/tree/lib
[[ -d $mods ]] || mods=$work/tree/usr/lib
# modprobe and depmod take the directory that holds lib/modules.
depmod -b "${mods%/lib}" "$version"
# Unpacking itself takes an emulated kernel longer than all the rest of its start, so it is done here.
packed=$(echo "$work"/tree/boot/vmlinuz-*)
for how in '\xfd7zXZ\x00:xz -dcq --single-stream' '\x28\xb5\x2f\xfd:zstd -dcq' '\x1f\x8b\x08:gzip -dcq'; do
  while IFS=: read -r at _; do
    # What follows the kernel in its image is taken for damage: the result decides.
    tail -c "+$((at + 1))" "$packed" | ${how#*:} >"$work/vmlinux" 2>/dev/null || true
    if [[ $(head -c 4 "$work/vmlinux" | tail -c 3) == ELF ]]; then
      mv "$work/vmlinux" "$work/tree/vmlinux"
      break 2
    fi
  done < <(LC_ALL=C grep -aboP "${how%%:*}" "$packed")
done
[[ -e $work/tree/vmlinux ]] || echo "vm-deps: $packed is packed in a way that is not known here: it will start slowly" >&2
touch "$work/tree/ready" # the last step: what is not ready is unpacked again
rm -rf "${cache:?}/$package"
mv "$work/tree" "$cache/$package"

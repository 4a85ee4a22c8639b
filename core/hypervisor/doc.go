// Package hypervisor is the small interface between the machine and the host's virtualization: KVM on Linux,
// Hypervisor.framework on macOS. The backends implement it and nothing above the machine sees them.
package hypervisor

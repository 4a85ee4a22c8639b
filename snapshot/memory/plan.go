package memory

import (
	"math"
	"slices"
)

const (
	// maxMappings bounds the mappings of one memory, anonymous ones included. The kernel allows a process 65530 by default,
	// which hundreds of VMs share. Fewer would make clusters that hold much beside the content.
	maxMappings = 64

	// fileMappings is the bound where nothing needs to be copied to keep it: each mapping costs each clone some microseconds.
	fileMappings = 32

	// zeroWeight is how many bytes of zeros in a mapping of a file weigh as much as copying one: a touched page of them costs a
	// page of the host's cache.
	zeroWeight = 4
)

// piece is a run of pages of an image that one file holds at their image offset. A nil file stands for zeros.
type piece struct {
	file     *file
	off, len int64 // bytes
}

// targets are the files that content is copied to, each for what begins in its piece. The pieces cover the image.
type targets []piece

func (t targets) at(off int64) *file {
	for _, p := range t {
		if off < p.end() {
			return p.file
		}
	}
	return nil
}

func (t targets) has(f *file) bool {
	return slices.ContainsFunc(t, func(p piece) bool { return p.file == f })
}

// clusters returns the pieces of the targets.
func (t targets) clusters(list []piece) []piece {
	var out []piece
	for _, p := range list {
		if t.has(p.file) {
			out = append(out, p)
		}
	}
	return out
}

func (p piece) end() int64 { return p.off + p.len }

// clip returns the part within [from, to); its length is not positive if there is none.
func (p piece) clip(from, to int64) piece {
	from, to = max(p.off, from), min(p.end(), to)
	return piece{file: p.file, off: from, len: to - from}
}

func pieces(f *file, list []Extent) []piece {
	out := make([]piece, len(list))
	for i, e := range list {
		out[i] = piece{file: f, off: e.Off, len: e.Len}
	}
	return out
}

// extents returns where the pieces lie, whatever they are of.
func extents(list []piece) []Extent {
	var out []Extent
	for _, p := range list {
		out = add(out, p.off, p.len)
	}
	return out
}

func addPiece(list []piece, p piece) []piece {
	if k := len(list); k > 0 && list[k-1].file == p.file && list[k-1].end() == p.off {
		list[k-1].len += p.len
		return list
	}
	return append(list, p)
}

// overlay returns lower with upper laid over it. Both are ascending without overlaps, and so is the result.
func overlay(lower, upper []piece) []piece {
	out := make([]piece, 0, len(lower)+len(upper))
	next, from := 0, int64(0)
	below := func(to int64) {
		for ; next < len(lower) && lower[next].off < to; next++ {
			if p := lower[next].clip(from, to); p.len > 0 {
				out = addPiece(out, p)
			}
			if lower[next].end() > to {
				return
			}
		}
	}
	for _, u := range upper {
		below(u.off)
		out = addPiece(out, u)
		from = u.end()
	}
	below(math.MaxInt64)
	return out
}

// within returns the parts of list that lie in clusters.
func within(list, clusters []piece) []piece {
	var out []piece
	next := 0
	for _, c := range clusters {
		for ; next < len(list) && list[next].off < c.end(); next++ {
			if p := list[next].clip(c.off, c.end()); p.len > 0 {
				out = addPiece(out, p)
			}
			if list[next].end() > c.end() {
				break
			}
		}
	}
	return out
}

// plan returns what to map for the given content, at most limit mappings: each is a part of a region and has a file, and zeros lie
// between them. Where the content has too many pieces, mappings go on over gaps (files have zeros there), and clusters
// of small pieces become pieces of the target there, which then has to hold them. It may have some of the content already.
func (l layout) plan(content []piece, target targets, limit int) []piece {
	regions := make([][]piece, len(l.sizes))
	count := 0
	for i, start := range l.starts {
		end := start + l.sizes[i]
		at := start
		for len(content) > 0 && content[0].off < end {
			p := content[0].clip(start, end)
			if p.off > at {
				regions[i] = append(regions[i], piece{off: at, len: p.off - at})
			}
			regions[i] = append(regions[i], p)
			at = p.end()
			if content[0].end() > end {
				break
			}
			content = content[1:]
		}
		if at < end {
			regions[i] = append(regions[i], piece{off: at, len: end - at})
		}
		count += len(regions[i])
	}
	// At the latest a step as large as the image leaves each region one cluster with zeros around it, 3*MaxRegions in all.
	for step := int64(PageSize); count > limit; step += step / 2 {
		for i := range regions {
			before := len(regions[i])
			regions[i] = join(regions[i], target, step, count-limit)
			count -= before - len(regions[i])
		}
	}
	var out []piece
	for _, list := range regions {
		for _, p := range list {
			if p.file != nil {
				out = append(out, p)
			}
		}
	}
	return out
}

// join makes list, which covers a region without gaps, shorter by excess pieces or one more, as far as a join costs at most step
// bytes: of content to copy to a target, and of zeros that become a file's. It works in place.
func join(list []piece, target targets, step int64, excess int) []piece {
	out := list[:0]
	for _, p := range list {
		out = append(out, p)
		for excess > 0 {
			n, file, cost := lastJoin(out, target)
			if n == 0 || cost > step {
				break
			}
			k := len(out) - n
			out[k] = piece{file: file, off: out[k].off, len: p.end() - out[k].off}
			out = out[:k+1]
			excess -= n - 1
		}
	}
	return out
}

// lastJoin returns how many of the last pieces could be one of the given file, 0 if none, and the cost in bytes.
func lastJoin(list []piece, target targets) (n int, file *file, cost int64) {
	k := len(list)
	if k < 2 || list[k-1].file == nil {
		return 0, nil, 0
	}
	n, first, last := 2, list[k-2], list[k-1]
	if first.file == nil {
		if k < 3 {
			return 0, nil, 0
		}
		n, cost, first = 3, first.len/zeroWeight, list[k-3]
	}
	if first.file == last.file {
		return n, first.file, cost
	}
	file = target.at(first.off)
	for _, p := range [...]piece{first, last} {
		if p.file != file {
			cost += p.len
		}
	}
	return n, file, cost
}

// relabel returns list with each piece as one of the file that is returned for it.
func relabel(list []piece, to func(piece) *file) []piece {
	out := make([]piece, 0, len(list))
	for _, p := range list {
		p.file = to(p)
		out = addPiece(out, p)
	}
	return out
}

func bytesOf(list []piece) int64 {
	var n int64
	for _, p := range list {
		n += p.len
	}
	return n
}
